/* GNUstep asks for libobjc2's objc/blocks_runtime.h when clang has -fblocks; libBlocksRuntime has the same calls. */
#include <Block.h>
