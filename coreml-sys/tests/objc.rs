//! The Objective-C shim on the Core ML work-alike, reached from Rust. What it does with models is shown by the driver of
//! `cargo xtask shim` and by the integration tests of `coreml-bridge`.
#![cfg(all(feature = "objc", not(target_vendor = "apple")))]

use std::ptr;

use coreml_sys::{CML_ABI_VERSION, CML_NOT_FOUND, CML_OK, CmlBlob, CmlBridge, CmlStr, workalike};

fn table() -> &'static CmlBridge {
    // SAFETY: the function has no precondition.
    let table = unsafe { coreml_sys::cml_bridge_coreml() };
    // SAFETY: the shim answers a pointer to a constant.
    unsafe { table.as_ref() }.expect("the shim has a table")
}

#[test]
fn the_table_is_as_large_as_the_bindings_say() {
    assert_eq!(table().abi_version, CML_ABI_VERSION);
    assert_eq!(table().struct_size as usize, size_of::<CmlBridge>());
}

#[test]
fn objective_c_runs_on_a_thread_that_rust_made_and_leaves_nothing_alive() {
    let describe = || {
        let bridge = table();
        let mut json: *mut CmlBlob = ptr::null_mut();
        // SAFETY: [F], and both out-pointers are valid (the error may be null).
        let status = unsafe { bridge.backend_info.unwrap()(bridge.self_, &mut json, ptr::null_mut()) };
        assert_eq!(status, CML_OK);
        // SAFETY: the blob was just given to us.
        let bytes = unsafe { bridge.blob_bytes.unwrap()(json) };
        // SAFETY: the bytes live as long as the blob.
        let text = String::from_utf8(unsafe { bytes.as_bytes() }.to_vec()).expect("UTF-8");
        // SAFETY: it is ours, and not used again.
        unsafe { bridge.blob_free.unwrap()(json) };
        text
    };
    let here = describe();
    let there = std::thread::spawn(describe).join().expect("no panic");
    assert!(here.starts_with("{\"name\":\"coreml\""), "{here}");
    assert_eq!(here, there);

    let bridge = table();
    let mut model = ptr::dangling_mut();
    // SAFETY: a null configuration is the default one; the out-pointer is valid and the error may be null.
    let status = unsafe {
        let path = CmlStr::from("/there/is/no/such.mlmodel");
        bridge.model_load.unwrap()(bridge.self_, path, ptr::null(), &mut model, ptr::null_mut())
    };
    assert_eq!(status, CML_NOT_FOUND);
    assert!(model.is_null());
    assert_eq!(workalike::cml_workalike_live_objects(), 0);
    assert_eq!(workalike::cml_test_live_handles(), 0);
}
