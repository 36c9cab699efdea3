//! The C API of OpenVINO behind safe functions: the only unsafe code of this crate.
//!
//! What the SAFETY lines lean on, from `openvino/c/*.h` of the version that [`super::load`] insists on:
//! - an object that a `*_create` or getter function returns belongs to the caller until the matching `*_free`;
//! - a function that fails returns a status and leaves its out-pointer alone, and no C++ exception leaves the library;
//! - strings that are passed in are read during the call only, and those handed out are freed by `ov_free`;
//! - `ov_core_t` and `ov_compiled_model_t` may be used from any thread, `ov_infer_request_t` from one at a time, but that an
//!   inference may be cancelled from any other (the library guards a request's state by a lock of its own);
//! - the memory behind a tensor made from a host pointer is touched between the start and the end of an inference only.
#![allow(unsafe_code, reason = "native bindings; each block has its SAFETY line")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_tensor::{Dtype, Tensor};
use openvino_sys as ov;

use crate::pool::Buffer;
use crate::watchdog::{Cancel, Watchdog};

/// A deadline beyond this is none: it keeps arithmetic on points in time from overflowing.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// What was being done.
    pub(super) during: &'static str,
    /// OpenVINO's own words.
    pub(super) message: String,
    /// Whether this is a run that was cancelled at its deadline.
    pub(super) deadline: bool,
}

impl Failure {
    fn new(during: &'static str, message: impl Into<String>) -> Self {
        Self {
            during,
            message: message.into(),
            deadline: false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.during, self.message)
    }
}

/// Loads the C library; with RPATH `$ORIGIN` it finds the others beside itself.
pub(super) fn load(library: &Path) -> Result<(), String> {
    ov::library::load_from(library)
}

/// The library's build, as in `2026.4.1-22982-...`.
pub(super) fn version() -> Result<String, Failure> {
    let mut version = ov::ov_version_t {
        buildNumber: ptr::null(),
        description: ptr::null(),
    };
    // SAFETY: `version` is a valid place for the answer.
    check("asking for the version", unsafe {
        ov::ov_get_openvino_version(&raw mut version)
    })?;
    // SAFETY: the call succeeded, so both fields are text that ends in NUL, ours until it is freed below.
    let build = unsafe { text(version.buildNumber) };
    // SAFETY: filled in by `ov_get_openvino_version`, freed once, not used afterwards.
    unsafe { ov::ov_version_free(&raw mut version) };
    Ok(build)
}

/// Frees what a pointer owns.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $free:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(NonNull<ov::$raw>);

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the library, belongs to this value alone, and is freed once.
                unsafe { ov::$free(self.0.as_ptr()) }
            }
        }
    };
}

owned!(
    /// The runtime with its plugins.
    Core, ov_core_t, ov_core_free
);
owned!(Model, ov_model_t, ov_model_free);
owned!(
    /// A model compiled for the CPU.
    CompiledModel, ov_compiled_model_t, ov_compiled_model_free
);
owned!(ConstPort, ov_output_const_port_t, ov_output_const_port_free);
owned!(HostTensor, ov_tensor_t, ov_tensor_free);
owned!(RequestHandle, ov_infer_request_t, ov_infer_request_free);

// SAFETY: `ov::Core` is documented to be thread-safe; the pointer itself never changes.
unsafe impl Send for Core {}
// SAFETY: as above.
unsafe impl Sync for Core {}
// SAFETY: a compiled model has no tie to the thread that made it.
unsafe impl Send for CompiledModel {}
// SAFETY: a request has no tie to the thread that made it.
unsafe impl Send for RequestHandle {}
// SAFETY: through a shared handle it is cancelled only, which any thread may do; what else uses a request is a method of
// [`Request`] that takes `&mut`, so one thread does.
unsafe impl Sync for RequestHandle {}

impl Cancel for RequestHandle {
    fn cancel(&self) {
        // SAFETY: the request lives as long as its handle, and may be cancelled from any thread; to cancel an inference
        // that has ended, or has not begun, does nothing.
        let _ = unsafe { ov::ov_infer_request_cancel(self.0.as_ptr()) };
    }
}

impl Core {
    pub(super) fn new() -> Result<Self, Failure> {
        let mut core = ptr::null_mut();
        // SAFETY: `core` is a valid place for the answer.
        check("starting the runtime", unsafe { ov::ov_core_create(&raw mut core) })?;
        own("starting the runtime", core).map(Self)
    }

    /// Reads ONNX bytes and compiles them for the CPU with these settings.
    pub(super) fn compile(&self, onnx: &[u8], settings: &[(&str, &str)]) -> Result<CompiledModel, Failure> {
        let mut model = ptr::null_mut();
        // SAFETY: the core lives; pointer and length are those of one slice, which is read during the call only; no
        // weights beside it; `model` is a valid place for the answer.
        check("reading the graph", unsafe {
            ov::ov_core_read_model_from_memory_buffer(
                self.0.as_ptr(),
                onnx.as_ptr().cast::<c_char>(),
                onnx.len(),
                ptr::null(),
                &raw mut model,
            )
        })?;
        let model = own("reading the graph", model).map(Model)?;
        let during = "compiling the graph";
        let texts: Vec<(CString, CString)> = settings
            .iter()
            .map(|(key, value)| Ok((c_text(key)?, c_text(value)?)))
            .collect::<Result<_, Failure>>()?;
        let properties: Vec<ov::ov_property_t> = texts
            .iter()
            .map(|(key, value)| ov::ov_property_t {
                key: key.as_ptr(),
                value: value.as_ptr().cast::<c_void>(),
            })
            .collect();
        let mut compiled = ptr::null_mut();
        // SAFETY: core and model live; `properties` holds that many pairs of texts, as these keys want them, and
        // `texts` keeps them alive during the call; `compiled` is a valid place for the answer.
        check(during, unsafe {
            ov::ov_core_compile_model_props(
                self.0.as_ptr(),
                model.0.as_ptr(),
                c"CPU".as_ptr(),
                properties.len(),
                properties.as_ptr(),
                &raw mut compiled,
            )
        })?;
        own(during, compiled).map(CompiledModel)
    }
}

/// What OpenVINO says of a port.
#[derive(Debug)]
pub(super) struct PortInfo {
    /// One of its names.
    pub(super) name: String,
    /// `None`: a type that tensors here don't have.
    pub(super) dtype: Option<Dtype>,
    pub(super) dims: Vec<usize>,
}

impl CompiledModel {
    /// The value of a setting.
    pub(super) fn property(&self, key: &str) -> Result<String, Failure> {
        let during = "reading a setting back";
        let key = c_text(key)?;
        let mut value = ptr::null_mut();
        // SAFETY: the model lives, `key` ends in NUL, `value` is a valid place for the answer.
        check(during, unsafe {
            ov::ov_compiled_model_get_property(self.0.as_ptr(), key.as_ptr(), &raw mut value)
        })?;
        // SAFETY: the call succeeded, so `value` is a text of the library's, ours to free.
        Ok(unsafe { take_text(value) })
    }

    /// The input ports, in their order.
    pub(super) fn inputs(&self) -> Result<Vec<PortInfo>, Failure> {
        self.ports(ov::ov_compiled_model_inputs_size, ov::ov_compiled_model_input_by_index)
    }

    /// The output ports, in their order.
    pub(super) fn outputs(&self) -> Result<Vec<PortInfo>, Failure> {
        self.ports(
            ov::ov_compiled_model_outputs_size,
            ov::ov_compiled_model_output_by_index,
        )
    }

    fn ports(&self, count: CountPorts, by_index: PortByIndex) -> Result<Vec<PortInfo>, Failure> {
        let during = "asking for the ports";
        let mut ports = 0usize;
        // SAFETY: the model lives, `ports` is a valid place for the answer.
        check(during, unsafe { count(self.0.as_ptr(), &raw mut ports) })?;
        (0..ports)
            .map(|index| {
                let mut port = ptr::null_mut();
                // SAFETY: as above; the library checks the index.
                check(during, unsafe { by_index(self.0.as_ptr(), index, &raw mut port) })?;
                own(during, port).map(ConstPort)?.info()
            })
            .collect()
    }

    /// A request, which runs the model.
    pub(super) fn request(&self) -> Result<Request, Failure> {
        let during = "preparing a run";
        let mut request = ptr::null_mut();
        // SAFETY: the model lives, `request` is a valid place for the answer.
        check(during, unsafe {
            ov::ov_compiled_model_create_infer_request(self.0.as_ptr(), &raw mut request)
        })?;
        let handle = own(during, request).map(RequestHandle)?;
        Ok(Request {
            handle: Arc::new(handle),
            inputs: self.inputs()?.len(),
            outputs: self.outputs()?.len(),
        })
    }
}

type CountPorts = unsafe fn(*const ov::ov_compiled_model_t, *mut usize) -> ov::ov_status_e;
type PortByIndex =
    unsafe fn(*const ov::ov_compiled_model_t, usize, *mut *mut ov::ov_output_const_port_t) -> ov::ov_status_e;

impl ConstPort {
    fn info(&self) -> Result<PortInfo, Failure> {
        let during = "asking for a port";
        let mut name = ptr::null_mut();
        // SAFETY: the port lives, `name` is a valid place for the answer.
        check(during, unsafe {
            ov::ov_port_get_any_name(self.0.as_ptr(), &raw mut name)
        })?;
        // SAFETY: the call succeeded, so `name` is a text of the library's, ours to free.
        let name = unsafe { take_text(name) };
        // Read as a number: a newer library may know types that the bindings' enum doesn't.
        let mut element = 0u32;
        // SAFETY: the port lives; the enum is `repr(u32)`, so a u32 is a valid place for the answer.
        check(during, unsafe {
            ov::ov_port_get_element_type(self.0.as_ptr(), (&raw mut element).cast())
        })?;
        let mut shape = ov::ov_shape_t {
            rank: 0,
            dims: ptr::null_mut(),
        };
        // SAFETY: the port lives, `shape` is a valid place for the answer.
        check(during, unsafe {
            ov::ov_const_port_get_shape(self.0.as_ptr(), &raw mut shape)
        })?;
        let rank = usize::try_from(shape.rank).unwrap_or(0);
        let dims = if rank == 0 || shape.dims.is_null() {
            Vec::new()
        } else {
            // SAFETY: the call succeeded, so `dims` holds `rank` numbers, until the shape is freed below.
            unsafe { std::slice::from_raw_parts(shape.dims, rank) }.to_vec()
        };
        // SAFETY: filled in by `ov_const_port_get_shape`, freed once, not used afterwards.
        unsafe { ov::ov_shape_free(&raw mut shape) };
        let dims = dims.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let dims = dims.map_err(|_| Failure::new(during, format!("port `{name}` has no fixed shape")))?;
        Ok(PortInfo {
            name,
            dtype: Dtype::ALL
                .into_iter()
                .find(|&dtype| element_type(dtype) as u32 == element),
            dims,
        })
    }
}

/// Where an output goes.
pub(super) struct Output {
    pub(super) dtype: Dtype,
    pub(super) dims: Vec<usize>,
    pub(super) buffer: Buffer,
}

/// Runs a compiled model, one batch at a time.
#[derive(Debug)]
pub(super) struct Request {
    handle: Arc<RequestHandle>,
    inputs: usize,
    outputs: usize,
}

impl Request {
    /// Runs once: reads `inputs` where they lie, writes into the buffers of `outputs` and returns those. On an error
    /// the run has ended (it touches no memory any more), and the request should not be used again.
    pub(super) fn run(
        &mut self,
        inputs: &[&Tensor],
        mut outputs: Vec<Output>,
        deadline: Option<(Duration, &Watchdog)>,
    ) -> Result<Vec<Buffer>, Failure> {
        let during = "setting the inputs and outputs";
        // Each port is set anew, always: what the request still holds from the run before may be gone.
        if (inputs.len(), outputs.len()) != (self.inputs, self.outputs) {
            let (inputs, outputs) = (inputs.len(), outputs.len());
            return Err(Failure::new(
                during,
                format!("{inputs} inputs and {outputs} outputs for another model"),
            ));
        }
        let request = self.handle.0.as_ptr();
        let mut aligned = Vec::new();
        for (index, tensor) in inputs.iter().enumerate() {
            let data = in_place_or_copied(tensor, &mut aligned);
            // SAFETY: a `Tensor` has as many bytes as its type and shape say, at `data` (its own place, or a copy in
            // `aligned`); the library only reads inputs, so the cast to mutable writes nothing; both live beyond the
            // end of the inference below, and the pointer is not touched after that.
            let host = unsafe { host_tensor(tensor.dtype(), tensor.shape().dims(), data.cast_mut()) }?;
            // SAFETY: request and tensor live; the library checks index, type and shape.
            check(during, unsafe {
                ov::ov_infer_request_set_input_tensor_by_index(request, index, host.0.as_ptr())
            })?;
        }
        for (index, output) in outputs.iter_mut().enumerate() {
            let wanted = output
                .dims
                .iter()
                .try_fold(output.dtype.size_bytes(), |all, &dim| all.checked_mul(dim));
            if wanted != Some(output.buffer.len()) {
                return Err(Failure::new(
                    during,
                    format!("output {index} has a buffer of another length"),
                ));
            }
            let data = output.buffer.as_mut().as_mut_ptr();
            // SAFETY: the buffer has as many bytes as type and shape say (just checked), is borrowed by nobody else,
            // and lives beyond the end of the inference below; the pointer is not touched after that.
            let host = unsafe { host_tensor(output.dtype, &output.dims, data) }?;
            // SAFETY: request and tensor live; the library checks index, type and shape.
            check(during, unsafe {
                ov::ov_infer_request_set_output_tensor_by_index(request, index, host.0.as_ptr())
            })?;
        }
        self.infer(deadline)?;
        Ok(outputs.into_iter().map(|output| output.buffer).collect())
    }

    /// Runs the inference in this thread, and returns when it has ended.
    fn infer(&mut self, deadline: Option<(Duration, &Watchdog)>) -> Result<(), Failure> {
        let during = "running the graph";
        let begin = Instant::now();
        let deadline = deadline.filter(|(after, _)| *after < LONGEST_WAIT);
        let watch = deadline.map(|(after, watchdog)| {
            let run: Arc<dyn Cancel> = Arc::clone(&self.handle) as Arc<dyn Cancel>;
            watchdog.watch(run, begin + after)
        });
        let watch = watch.transpose();
        let watch =
            watch.map_err(|error| Failure::new(during, format!("no thread to end it at its deadline: {error}")))?;
        // SAFETY: the request lives, and `&mut self` keeps others from using it, but for cancelling.
        let ended = unsafe { ov::ov_infer_request_infer(self.handle.0.as_ptr()) };
        drop(watch);
        // Whether it was cancelled can't be seen from the status, so the clock is asked.
        if deadline.is_some_and(|(after, _)| begin.elapsed() >= after) {
            return Err(Failure {
                during,
                message: "cancelled at the deadline".into(),
                deadline: true,
            });
        }
        check(during, ended)
    }
}

/// A tensor over somebody's memory.
///
/// # Safety
/// `data` must point to as many bytes as type and shape say, and stay valid, aligned for the type and otherwise
/// unused until the last inference that the tensor takes part in has ended.
unsafe fn host_tensor(dtype: Dtype, dims: &[usize], data: *mut u8) -> Result<HostTensor, Failure> {
    let during = "wrapping a tensor";
    let mut dims: Vec<i64> = dims
        .iter()
        .map(|&dim| i64::try_from(dim).map_err(|_| Failure::new(during, "a dimension is too large")))
        .collect::<Result<_, _>>()?;
    let shape = ov::ov_shape_t {
        rank: dims.len() as i64,
        dims: dims.as_mut_ptr(),
    };
    let mut tensor = ptr::null_mut();
    // SAFETY: `shape` names as many numbers as `dims` holds, read during the call only; `data` is vouched for by the
    // caller; `tensor` is a valid place for the answer.
    check(during, unsafe {
        ov::ov_tensor_create_from_host_ptr(element_type(dtype), shape, data.cast::<c_void>(), &raw mut tensor)
    })?;
    own(during, tensor).map(HostTensor)
}

/// The tensor's own place, or that of a copy if its elements are not aligned there. The copies are kept in `copies`,
/// whose growth does not move them.
fn in_place_or_copied(tensor: &Tensor, copies: &mut Vec<Vec<u64>>) -> *const u8 {
    let bytes = tensor.bytes();
    if (bytes.as_ptr() as usize).is_multiple_of(tensor.dtype().size_bytes()) {
        return bytes.as_ptr();
    }
    let mut copy = vec![0u64; bytes.len().div_ceil(8)];
    for (word, eight) in copy.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..eight.len()].copy_from_slice(eight);
        *word = u64::from_ne_bytes(padded);
    }
    let place = copy.as_ptr().cast::<u8>();
    copies.push(copy);
    place
}

/// Turns a status into a result, with the library's own words.
fn check(during: &'static str, status: ov::ov_status_e) -> Result<(), Failure> {
    if status == ov::ov_status_e::OK {
        return Ok(());
    }
    // SAFETY: returns a text of the library's, ours to free, or null.
    let message = unsafe { take_text(ov::ov_get_last_err_msg().cast_mut()) };
    let message = if message.trim().is_empty() {
        format!("{status:?}")
    } else {
        message.trim().to_owned()
    };
    Err(Failure::new(during, message))
}

fn own<T>(during: &'static str, pointer: *mut T) -> Result<NonNull<T>, Failure> {
    NonNull::new(pointer).ok_or_else(|| Failure::new(during, "the library returned nothing"))
}

fn c_text(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::new("passing a setting", "a text with a NUL in it"))
}

/// # Safety
/// `text` must be null or end in NUL.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `owned` must be null, or a text that the library handed out and nobody freed.
unsafe fn take_text(owned: *mut c_char) -> String {
    // SAFETY: vouched for by the caller.
    let copy = unsafe { text(owned) };
    if !owned.is_null() {
        // SAFETY: vouched for by the caller; not used afterwards.
        unsafe { ov::ov_free(owned) };
    }
    copy
}

const fn element_type(dtype: Dtype) -> ov::ov_element_type_e {
    match dtype {
        Dtype::F32 => ov::ov_element_type_e::F32,
        Dtype::F64 => ov::ov_element_type_e::F64,
        Dtype::F16 => ov::ov_element_type_e::F16,
        Dtype::Bf16 => ov::ov_element_type_e::BF16,
        Dtype::I64 => ov::ov_element_type_e::I64,
        Dtype::I32 => ov::ov_element_type_e::I32,
        Dtype::U8 => ov::ov_element_type_e::U8,
        Dtype::Bool => ov::ov_element_type_e::OV_BOOLEAN,
    }
}
