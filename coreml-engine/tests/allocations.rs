//! After warm-up a prediction allocates its outputs and a few KB at most.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{array, cached, load, predict, repository};
use coreml_engine::Elements;

/// Counts bytes asked for, on every thread.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's layout, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` is from `alloc`, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes_of(work: impl FnOnce()) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    work();
    BYTES.load(Ordering::Relaxed) - before
}

/// One test only: other tests of the binary would be counted too.
#[test]
fn predictions_reuse_their_memory() {
    let model = load(&repository("models/digits/digits-f32.mlpackage"));
    let mut session = model.session(NonZeroUsize::MIN);
    let image = Elements::Float32(vec![0.5; 64]);
    let mut run = || drop(predict(&mut session, &[("image", array(&[1, 1, 8, 8], &image))], "probabilities"));
    let cold = bytes_of(&mut run);
    (0..3).for_each(|_| run());
    let warm = bytes_of(&mut run);
    println!("digits: {cold} bytes in the first prediction, {warm} in the fifth");
    assert!(warm <= 4 << 10, "{warm} bytes");

    let Some(package) = cached("minilm/minilm-f32.mlpackage") else { return };
    let model = load(&package);
    let mut session = model.session(NonZeroUsize::MIN);
    let (ids, mask) = (Elements::Int32(vec![101; 128]), Elements::Int32(vec![1; 128]));
    let mut run = || {
        let inputs = [("input_ids", array(&[1, 128], &ids)), ("attention_mask", array(&[1, 128], &mask))];
        drop(predict(&mut session, &inputs, "embedding"));
    };
    let cold = bytes_of(&mut run);
    (0..3).for_each(|_| run());
    let warm = bytes_of(&mut run);
    let outputs = (384 + 128 * 384) * 4;
    println!(
        "minilm: {cold} bytes in the first prediction, {warm} in the fifth, of which {outputs} are outputs"
    );
    assert!(warm <= outputs + (8 << 10), "{warm} bytes");
}
