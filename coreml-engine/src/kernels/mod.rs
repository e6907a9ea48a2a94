//! Arithmetic of our own, where the library's is absent or measured to be slow: convolution and pooling.
//!
//! Vector instructions are chosen at run time by `rten-simd`. Scratch memory is kept per thread and reused, so that nothing is
//! allocated after the first prediction.

pub(crate) mod conv;
pub(crate) mod gemm;
pub(crate) mod planes;
pub(crate) mod scratch;
pub(crate) mod window;
