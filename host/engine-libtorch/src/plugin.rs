//! The plug-in's functions, and what they hand out, each with its end.

use std::borrow::Cow;
use std::ffi::{CStr, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use cloister_graph::Port;
use cloister_tensor::{Dtype, Shape, Tensor};
use libloading::Library;

use crate::abi::{self, DTYPES, Output, RANK, View, Words};

/// Bytes of the library's own words that are kept.
const WORDS_BYTES: usize = 8 << 10;

/// The plug-in, loaded.
#[derive(Debug)]
pub(crate) struct Plugin {
    name: String,
    load: abi::Load,
    run: abi::Run,
    release_step: abi::ReleaseStep,
    release_output: abi::ReleaseOutput,
    /// Never unloaded: its threads live as long as the process.
    _library: &'static Library,
}

impl Plugin {
    /// Loads it, and the libraries beside it that it links.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: the file is the plug-in, as whoever chose the folder vouches for and the measurement shows; its
        // initialisers and libtorch's run in this process as its own code does.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        let library: &'static Library = Box::leak(Box::new(library));
        let missing = |error: libloading::Error| format!("it is not Cloister's plug-in: {error}");
        // SAFETY: the symbol has this type in every version of the interface.
        let version = unsafe { library.get::<abi::Abi>(b"cloister_torch_abi\0") }.map_err(missing)?;
        // SAFETY: the function takes nothing and returns a number.
        let version = unsafe { version() };
        if version != abi::VERSION {
            return Err(format!(
                "the plug-in has version {version} of the interface, wanted {}: build both from one source",
                abi::VERSION
            ));
        }
        // SAFETY: in this version of the interface the symbols have the types that `abi` gives them.
        unsafe {
            let name: abi::Name = *library.get(b"cloister_torch_name\0").map_err(missing)?;
            Ok(Self {
                name: CStr::from_ptr(name()).to_string_lossy().into_owned(),
                load: *library.get(b"cloister_torch_load\0").map_err(missing)?,
                run: *library.get(b"cloister_torch_run\0").map_err(missing)?,
                release_step: *library.get(b"cloister_torch_release_step\0").map_err(missing)?,
                release_output: *library.get(b"cloister_torch_release_output\0").map_err(missing)?,
                _library: library,
            })
        }
    }

    /// Name and version of the library behind it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Loads an archive.
    pub(crate) fn step(plugin: &Arc<Self>, archive: &[u8]) -> Result<Step, String> {
        let mut words = Buffer::new();
        // SAFETY: the archive and the buffer live during the call, and their lengths are theirs.
        let step = unsafe { (plugin.load)(archive.as_ptr(), archive.len(), &raw mut words.words) };
        let step = NonNull::new(step).ok_or_else(|| words.text())?;
        Ok(Step {
            step,
            plugin: Arc::clone(plugin),
        })
    }
}

/// Where the plug-in writes an error.
struct Buffer {
    words: Words,
    bytes: Vec<u8>,
}

impl Buffer {
    fn new() -> Self {
        let mut bytes = vec![0; WORDS_BYTES];
        let words = Words {
            data: bytes.as_mut_ptr(),
            capacity: bytes.len(),
            length: 0,
        };
        Self { words, bytes }
    }

    fn text(&self) -> String {
        let length = self.words.length.min(self.bytes.len());
        String::from_utf8_lossy(&self.bytes[..length]).into_owned()
    }
}

/// A step that libtorch has compiled.
pub(crate) struct Step {
    step: NonNull<c_void>,
    plugin: Arc<Plugin>,
}

// SAFETY: libtorch's modules belong to no thread; `run` takes it exclusively.
unsafe impl Send for Step {}

impl Drop for Step {
    fn drop(&mut self) {
        // SAFETY: it came from `load`, and this is its end.
        unsafe { (self.plugin.release_step)(self.step.as_ptr()) }
    }
}

impl Step {
    /// Runs it on tensors that fit its ports, and compares what comes out with its ports.
    pub(crate) fn run(&mut self, threads: u32, inputs: &[&Tensor], ports: &[Port]) -> Result<Vec<Tensor>, String> {
        let lent: Vec<Cow<'_, [u8]>> = inputs.iter().map(|tensor| aligned(tensor)).collect::<Result<_, _>>()?;
        let views: Vec<View> = inputs
            .iter()
            .zip(&lent)
            .map(|(tensor, bytes)| view(tensor, bytes))
            .collect::<Result<_, _>>()?;
        let mut outputs: Vec<Output> = Vec::with_capacity(ports.len());
        let mut words = Buffer::new();
        // SAFETY: the step lives and is ours alone; `views` name memory that `inputs` and `lent` keep during the call, and
        // nobody writes to it; `outputs` has room for as many as are asked for; the buffer's length is its own.
        let done = unsafe {
            (self.plugin.run)(
                self.step.as_ptr(),
                threads,
                views.as_ptr(),
                views.len(),
                outputs.as_mut_ptr(),
                ports.len(),
                &raw mut words.words,
            )
        };
        if !done {
            return Err(words.text());
        }
        // SAFETY: the plug-in filled all that were asked for.
        unsafe { outputs.set_len(ports.len()) };
        // Each is taken first, so that all are given back whatever is wrong with one.
        let taken: Vec<Taken> = outputs
            .into_iter()
            .map(|output| Taken {
                output,
                plugin: Arc::clone(&self.plugin),
            })
            .collect();
        taken
            .into_iter()
            .zip(ports)
            .map(|(output, port)| output.into_tensor(port))
            .collect()
    }
}

/// The bytes of an input where libtorch may read them: in place, or a copy of those that lie across a line.
fn aligned(tensor: &Tensor) -> Result<Cow<'_, [u8]>, String> {
    let bytes = tensor.bytes().as_ref();
    if bytes.as_ptr().addr().is_multiple_of(tensor.dtype().size_bytes()) {
        return Ok(Cow::Borrowed(bytes));
    }
    // An allocation of so many bytes lies at a multiple of 16 with every allocator of this system; it is looked at all the same.
    let copy = bytes.to_vec();
    if copy.as_ptr().addr().is_multiple_of(tensor.dtype().size_bytes()) {
        return Ok(Cow::Owned(copy));
    }
    Err(format!(
        "an input could not be laid at a multiple of {} bytes",
        tensor.dtype().size_bytes()
    ))
}

fn view(tensor: &Tensor, bytes: &[u8]) -> Result<View, String> {
    let dtype = tensor.dtype().name();
    let dtype = DTYPES
        .iter()
        .position(|known| *known == dtype)
        .ok_or("a type that the plug-in does not have")?;
    let shape = tensor.shape().dims();
    let mut dims = [0; RANK];
    let places = dims
        .get_mut(..shape.len())
        .ok_or("more dimensions than the plug-in has")?;
    for (place, dim) in places.iter_mut().zip(shape) {
        *place = i64::try_from(*dim).map_err(|_| "a dimension is too large")?;
    }
    Ok(View {
        data: bytes.as_ptr(),
        bytes: bytes.len(),
        dtype: dtype as u32,
        rank: shape.len() as u32,
        dims,
    })
}

/// An output in libtorch's memory.
struct Taken {
    output: Output,
    plugin: Arc<Plugin>,
}

// SAFETY: the plug-in takes outputs back from any thread, and nobody writes to them.
unsafe impl Send for Taken {}
// SAFETY: as above: what is shared is only read.
unsafe impl Sync for Taken {}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: it came from `run`, and this is its end.
        unsafe { (self.plugin.release_output)(self.output.owner) }
    }
}

impl AsRef<[u8]> for Taken {
    fn as_ref(&self) -> &[u8] {
        let view = &self.output.view;
        if view.bytes == 0 {
            return &[];
        }
        // SAFETY: the plug-in vouches for so many bytes there, until the output is given back, which is when `self` ends.
        unsafe { std::slice::from_raw_parts(view.data, view.bytes) }
    }
}

impl Taken {
    fn into_tensor(self, port: &Port) -> Result<Tensor, String> {
        let view = &self.output.view;
        let dtype = DTYPES.get(view.dtype as usize).copied().and_then(Dtype::from_name);
        let dims = view.dims.get(..view.rank as usize).unwrap_or_default();
        let wanted = port.shape.iter().map(|dim| i64::try_from(*dim).ok());
        let same =
            dims.len() == port.shape.len() && dims.iter().zip(wanted).all(|(seen, wanted)| Some(*seen) == wanted);
        if dtype != Some(port.dtype) || !same {
            let seen = dtype.map_or_else(|| "of an unknown type".to_owned(), |dtype| dtype.to_string());
            return Err(format!(
                "output `{}` is {seen} {dims:?}, wanted {} {:?}",
                port.name, port.dtype, port.shape
            ));
        }
        let shape = Shape::new(&port.shape).map_err(|error| error.to_string())?;
        let tensor = Tensor::new(port.dtype, shape, Bytes::from_owner(self));
        tensor.map_err(|error| format!("output `{}`: {error}", port.name))
    }
}
