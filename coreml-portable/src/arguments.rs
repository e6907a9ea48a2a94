//! Arguments of C callers: NULL and UTF-8 are checked here, once.

use coreml_sys::CmlStr;

use crate::error::Failure;

/// A place that the caller wants a struct in.
pub(crate) struct Place<T>(*mut T);

impl<T> Place<T> {
    pub(crate) fn set(&mut self, value: T) {
        // SAFETY: `place` took a pointer that is valid for a write until the call ends.
        unsafe { self.0.write(value) };
    }
}

/// # Safety
/// `pointer` must be NULL or valid for a write during the call.
pub(crate) unsafe fn place<T>(pointer: *mut T, what: &str) -> Result<Place<T>, Failure> {
    if pointer.is_null() { Err(Failure::null(what)) } else { Ok(Place(pointer)) }
}

/// A place for an out-handle, which is NULL from now on (rule 2).
///
/// # Safety
/// As [`place`].
pub(crate) unsafe fn out<T>(pointer: *mut *mut T, what: &str) -> Result<Place<*mut T>, Failure> {
    // SAFETY: the caller's promise.
    let mut place = unsafe { place(pointer, what) }?;
    place.set(std::ptr::null_mut());
    Ok(place)
}

/// # Safety
/// `pointer` must be NULL or point to `length` elements that live and do not change for `'a`.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, length: usize, what: &str) -> Result<&'a [T], Failure> {
    match (length, pointer.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(Failure::null(what)),
        // SAFETY: not NULL; the rest is the caller's promise.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts(pointer, length) }),
    }
}

/// # Safety
/// `pointer` must be NULL or point to `length` initialised elements that nobody else uses for `'a`.
pub(crate) unsafe fn slice_mut<'a, T>(
    pointer: *mut T,
    length: usize,
    what: &str,
) -> Result<&'a mut [T], Failure> {
    match (length, pointer.is_null()) {
        (0, _) => Ok(&mut []),
        (_, true) => Err(Failure::null(what)),
        // SAFETY: not NULL; the rest is the caller's promise.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts_mut(pointer, length) }),
    }
}

/// # Safety
/// The string must be none, or valid for `'a`.
pub(crate) unsafe fn text<'a>(string: CmlStr, what: &str) -> Result<&'a str, Failure> {
    if string.ptr.is_null() {
        return Err(Failure::null(what));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { string.as_bytes() };
    std::str::from_utf8(bytes).map_err(|_| Failure::invalid(format!("{what} is not UTF-8")))
}

/// A struct's size, as its `size` field has it.
pub(crate) fn size_of_struct<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}
