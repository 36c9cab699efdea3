//! What the host and the plug-in say to each other: one C interface, this one file compiled into both.
//!
//! The plug-in owns what it hands out, and takes it back by the functions named so. Texts of errors go into the caller's
//! buffer. Nothing unwinds over this border.

use std::ffi::{c_char, c_void};

/// Counts up with every change of what stands here; a plug-in of another version is refused.
pub const VERSION: u32 = 1;

/// The most dimensions that a tensor has.
pub const RANK: usize = 8;

/// Element types, as numbers: their places in this list are part of the interface.
pub const DTYPES: [&str; 8] = ["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL"];

/// A dense tensor in memory, rows first. Who gets it reads `bytes` bytes at `data` and writes none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The first element; at a multiple of the element's size.
    pub data: *const u8,
    /// Length in bytes.
    pub bytes: usize,
    /// The type's place in [`DTYPES`].
    pub dtype: u32,
    /// How many of `dims` count.
    pub rank: u32,
    /// The shape.
    pub dims: [i64; RANK],
}

/// An output: a view, and what keeps its memory until [`ReleaseOutput`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Where it lies.
    pub view: View,
    /// The plug-in's own tensor.
    pub owner: *mut c_void,
}

/// Where the text of an error goes: UTF-8, cut at `capacity`.
#[repr(C)]
#[derive(Debug)]
pub struct Words {
    /// The buffer.
    pub data: *mut u8,
    /// Its size in bytes.
    pub capacity: usize,
    /// How many bytes were written.
    pub length: usize,
}

/// `cloister_torch_abi`: the version of this interface that the plug-in has.
pub type Abi = unsafe extern "C" fn() -> u32;

/// `cloister_torch_name`: name and version of the library, a string that lives as long as the plug-in.
pub type Name = unsafe extern "C" fn() -> *const c_char;

/// `cloister_torch_load`: loads a TorchScript archive of `length` bytes; null after an error.
pub type Load = unsafe extern "C" fn(archive: *const u8, length: usize, words: *mut Words) -> *mut c_void;

/// `cloister_torch_run`: runs what was loaded on `count` inputs with so many threads and fills `expected` outputs. True if
/// all went well; otherwise no output was filled.
pub type Run = unsafe extern "C" fn(
    step: *mut c_void,
    threads: u32,
    inputs: *const View,
    count: usize,
    outputs: *mut Output,
    expected: usize,
    words: *mut Words,
) -> bool;

/// `cloister_torch_release_step`: gives back what [`Load`] returned.
pub type ReleaseStep = unsafe extern "C" fn(step: *mut c_void);

/// `cloister_torch_release_output`: gives an [`Output::owner`] back; from any thread.
pub type ReleaseOutput = unsafe extern "C" fn(owner: *mut c_void);
