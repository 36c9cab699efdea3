//! libtorch behind the C interface of `abi.rs`, by the `tch` crate.
//!
//! A library of its own, and not a part of the host's binary: then the keeper, which has the keys, never maps libtorch, the
//! runner loads it after it gave up the file system and the network, and the host builds on machines without it.
//! What comes in here was written by the host: it has checked the archive's every statement, and each tensor against its port.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{CModule, Device, IValue, Kind, TchError, Tensor};

#[allow(dead_code, reason = "the types of the functions are the host's")]
#[path = "../../src/abi.rs"]
mod abi;

use abi::{Output, RANK, View, Words};

/// Version of the library that `tch` is made for; its build compares the headers'.
const NAME: &CStr = c"libtorch 2.13.0";

/// In the order of [`abi::DTYPES`].
const KINDS: [Kind; 8] = [
    Kind::Float,
    Kind::Double,
    Kind::Half,
    Kind::BFloat16,
    Kind::Int64,
    Kind::Int,
    Kind::Uint8,
    Kind::Bool,
];

/// The version of the interface.
#[unsafe(no_mangle)]
pub extern "C" fn cloister_torch_abi() -> u32 {
    abi::VERSION
}

/// Name and version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn cloister_torch_name() -> *const c_char {
    NAME.as_ptr()
}

/// Loads an archive.
///
/// # Safety
/// `archive` points to `length` bytes, `words` to a buffer as [`Words`] says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cloister_torch_load(archive: *const u8, length: usize, words: *mut Words) -> *mut c_void {
    // SAFETY: the caller's promise.
    let mut archive = unsafe { std::slice::from_raw_parts(archive, length) };
    keep_memory();
    let loaded = guarded(|| {
        // A step is one straight line that is computed as it is written: nothing is specialised, fused or compiled for it.
        tch::jit::f_set_profiling_mode(false).map_err(in_words)?;
        tch::jit::f_set_tensor_expr_fuser_enabled(false).map_err(in_words)?;
        tch::jit::f_set_graph_executor_optimize(false).map_err(in_words)?;
        CModule::load_data(&mut archive).map_err(in_words)
    });
    match loaded {
        Ok(module) => Box::into_raw(Box::new(module)).cast(),
        Err(text) => {
            // SAFETY: the caller's promise.
            unsafe { say(words, &text) };
            std::ptr::null_mut()
        }
    }
}

/// Has the allocator keep what a step gives back for the next one: fresh pages, a fault each, are the dear part of large tensors. Up to
/// 32 MiB (as far as glibc goes) they come out of the heap, which is given back to the system beyond 2 GiB only.
fn keep_memory() {
    const LARGEST_BYTES: i32 = 32 << 20;
    // SAFETY: both are settings of the allocator that may change at any time; one that is refused leaves things as they are.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Runs a step once.
///
/// # Safety
/// `step` comes from [`cloister_torch_load`] and is used by one thread at a time; `inputs` points to `count` views, each of
/// memory that is there, and not written, during the call; `outputs` has room for `expected`; `words` is as [`Words`] says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cloister_torch_run(
    step: *mut c_void,
    threads: u32,
    inputs: *const View,
    count: usize,
    outputs: *mut Output,
    expected: usize,
    words: *mut Words,
) -> bool {
    // SAFETY: the caller's promise; `step` is a module that was boxed.
    let (step, inputs) = unsafe { (&*step.cast::<CModule>(), std::slice::from_raw_parts(inputs, count)) };
    match guarded(|| run(step, threads, inputs, expected)) {
        Ok(made) => {
            for (at, output) in made.into_iter().enumerate() {
                // SAFETY: `run` gives `expected` of them, and there is room for so many.
                unsafe { outputs.add(at).write(output.given()) };
            }
            true
        }
        Err(text) => {
            // SAFETY: the caller's promise.
            unsafe { say(words, &text) };
            false
        }
    }
}

/// Gives a step back.
///
/// # Safety
/// `step` comes from [`cloister_torch_load`] and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cloister_torch_release_step(step: *mut c_void) {
    // SAFETY: the caller's promise.
    let module = unsafe { Box::from_raw(step.cast::<CModule>()) };
    let _ = guarded(move || {
        drop(module);
        Ok(())
    });
}

/// Gives an output back.
///
/// # Safety
/// `owner` comes from [`cloister_torch_run`] and is not used afterwards, nor is the memory that it keeps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cloister_torch_release_output(owner: *mut c_void) {
    // SAFETY: the caller's promise.
    let tensor = unsafe { Box::from_raw(owner.cast::<Tensor>()) };
    let _ = guarded(move || {
        drop(tensor);
        Ok(())
    });
}

/// A tensor that is dense, and alone in its memory.
struct Made {
    tensor: Tensor,
    view: View,
}

impl Made {
    fn given(self) -> Output {
        Output {
            view: self.view,
            owner: Box::into_raw(Box::new(self.tensor)).cast(),
        }
    }
}

fn run(step: &CModule, threads: u32, inputs: &[View], expected: usize) -> Result<Vec<Made>, String> {
    // OpenMP keeps it for each thread that calls.
    tch::set_num_threads(i32::try_from(threads).map_err(|_| "so many threads can't be had".to_owned())?);
    let tensors: Vec<Tensor> = inputs.iter().map(seen).collect::<Result<_, _>>()?;
    let result = step.forward_is(&[IValue::TensorList(tensors)]).map_err(in_words)?;
    let IValue::TensorList(made) = result else {
        return Err("the step gives something else than a list of tensors".to_owned());
    };
    if made.len() != expected {
        return Err(format!("the step gives {} tensors, wanted {expected}", made.len()));
    }
    made.into_iter().map(|tensor| dense(tensor, inputs)).collect()
}

/// An input, where it lies.
fn seen(view: &View) -> Result<Tensor, String> {
    let kind = KINDS.get(view.dtype as usize).ok_or("an input of an unknown type")?;
    let dims = view
        .dims
        .get(..view.rank as usize)
        .ok_or("an input of too many dimensions")?;
    // SAFETY: the memory is there for the whole call, and libtorch reads dims' product elements of it: the host has checked that
    // this is its length. No statement that the host lets pass writes into what it did not make.
    unsafe { Tensor::f_from_blob(view.data, dims, &[], *kind, Device::Cpu) }.map_err(in_words)
}

/// An output as the host wants it: elements in order, in memory that is not an input's.
fn dense(tensor: Tensor, inputs: &[View]) -> Result<Made, String> {
    let mut tensor = tensor
        .f_detach()
        .and_then(|tensor| tensor.f_contiguous())
        .map_err(in_words)?;
    let at = |tensor: &Tensor| tensor.data_ptr() as usize;
    let inside = |view: &View| (view.data as usize..view.data as usize + view.bytes).contains(&at(&tensor));
    if inputs.iter().any(inside) {
        tensor = tensor.copy();
    }
    let kind = tensor.f_kind().map_err(in_words)?;
    let dtype = KINDS
        .iter()
        .position(|known| *known == kind)
        .ok_or("an output of a type that the host does not have")?;
    let size = tensor.size();
    let mut dims = [0; RANK];
    dims.get_mut(..size.len())
        .ok_or("an output of too many dimensions")?
        .copy_from_slice(&size);
    let view = View {
        data: tensor.data_ptr() as *const u8,
        bytes: tensor.numel() * kind.elt_size_in_bytes(),
        dtype: dtype as u32,
        rank: size.len() as u32,
        dims,
    };
    Ok(Made { tensor, view })
}

/// Runs what may panic: nothing unwinds into the host.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the binding of libtorch panicked".to_owned()))
}

fn in_words(error: TchError) -> String {
    error.to_string()
}

/// Writes a text into the caller's buffer.
///
/// # Safety
/// `words` is as [`Words`] says.
unsafe fn say(words: *mut Words, text: &str) {
    // SAFETY: the caller's promise.
    let words = unsafe { &mut *words };
    let length = text.floor_char_boundary(words.capacity);
    // SAFETY: the buffer has `capacity` bytes, and `length` is no more.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), words.data, length) };
    words.length = length;
}
