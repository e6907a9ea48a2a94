/* The part of Metal that the shim uses, for GNUstep: test code. */
#ifndef WORKALIKE_METAL_H
#define WORKALIKE_METAL_H

#import <Foundation/Foundation.h>
#include <stdint.h>

@protocol MTLDevice <NSObject>
@property(readonly, nonatomic) NSString *name;
@property(readonly, nonatomic) uint64_t registryID;
@end

#endif
