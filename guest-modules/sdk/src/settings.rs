//! Settings: declared once, typed where they are read.

pub use crate::bindings::trainer::cloister::federation::settings::Value;
use crate::bindings::trainer::cloister::federation::settings::get;
use crate::{Failure, Result};

/// A type that a setting can have.
pub trait Setting: Sized {
    /// Its name in the declaration.
    const TYPE: &'static str;

    /// The value, if it fits the type.
    fn of(value: Value) -> Option<Self>;
}

impl Setting for bool {
    const TYPE: &'static str = "boolean";
    fn of(value: Value) -> Option<Self> {
        if let Value::Boolean(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

macro_rules! whole {
    ($($ty:ty),*) => {$(
        impl Setting for $ty {
            const TYPE: &'static str = "integer";
            fn of(value: Value) -> Option<Self> {
                if let Value::Integer(value) = value { value.try_into().ok() } else { None }
            }
        }
    )*};
}
whole!(i64, u64, u32);

impl Setting for f64 {
    const TYPE: &'static str = "number";
    fn of(value: Value) -> Option<Self> {
        if let Value::Number(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

impl Setting for String {
    const TYPE: &'static str = "text";
    fn of(value: Value) -> Option<Self> {
        if let Value::Text(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

/// Reads a setting.
///
/// # Errors
/// It is not there, or does not fit the type (a negative number for a `u32`, say).
pub fn read<T: Setting>(name: &str) -> Result<T> {
    let value = get(name).ok_or_else(|| Failure::setting(format!("setting `{name}` is not there")))?;
    let seen = format!("{value:?}");
    T::of(value).ok_or_else(|| Failure::setting(format!("setting `{name}`: seen {seen}, out of range for {}", T::TYPE)))
}

/// Bytes of a declaration at most.
pub const MAX_BYTES: usize = 16 << 10;

/// Writes a declaration while the module is compiled: `{"name":{"type":..,"default":..,"choices":..,"doc":..},..}`.
pub struct Declaration {
    bytes: [u8; MAX_BYTES],
    length: usize,
}

impl Declaration {
    /// An empty one.
    #[allow(
        clippy::new_without_default,
        reason = "const, for the section of a module; `Default` is not"
    )]
    pub const fn new() -> Self {
        Self {
            bytes: [0; MAX_BYTES],
            length: 0,
        }
        .push("{")
    }

    /// Adds a setting; `default` and `choices` are JSON, empty where there are none.
    pub const fn setting(mut self, name: &str, ty: &str, default: &str, choices: &str, doc: &str) -> Self {
        if self.length > 1 {
            self = self.push(",");
        }
        self = self.text(name).push(":{\"type\":").text(ty);
        if !default.is_empty() {
            self = self.push(",\"default\":").push(default);
        }
        if !choices.is_empty() {
            self = self.push(",\"choices\":").push(choices);
        }
        self.push(",\"doc\":").text(doc.trim_ascii()).push("}")
    }

    /// Closes the declaration.
    pub const fn end(self) -> Self {
        self.push("}")
    }

    /// Its length in bytes.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Its bytes; `N` is [`Declaration::length`].
    pub const fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        let mut at = 0;
        while at < N {
            out[at] = self.bytes[at];
            at += 1;
        }
        out
    }

    const fn push(mut self, text: &str) -> Self {
        let text = text.as_bytes();
        let mut at = 0;
        while at < text.len() {
            self.bytes[self.length] = text[at];
            self.length += 1;
            at += 1;
        }
        self
    }

    /// A JSON string.
    const fn text(mut self, text: &str) -> Self {
        self = self.push("\"");
        let text = text.as_bytes();
        let mut at = 0;
        while at < text.len() {
            // A control character becomes a space; documentation has none that matter.
            let byte = if text[at] < b' ' { b' ' } else { text[at] };
            if byte == b'"' || byte == b'\\' {
                self.bytes[self.length] = b'\\';
                self.length += 1;
            }
            self.bytes[self.length] = byte;
            self.length += 1;
            at += 1;
        }
        self.push("\"")
    }
}

/// Declares the module's settings as a struct with a function `read() -> Result<Self>`, and writes the declaration into the
/// component, where `cloister module inspect` finds it, and the host before it calls the module for the first time.
///
/// A setting without a default must be given by the policy; `in [..]` lists the texts that are allowed.
///
/// ```ignore
/// cloister_guest::settings! {
///     struct Settings {
///         /// Passes over the rows in a round.
///         epochs: u32 = 1,
///         /// How the learning rate changes.
///         schedule: String in ["constant", "step"] = "constant",
///         /// Has to be given.
///         learning_rate: f64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$outer:meta])* $vis:vis struct $struct:ident {
        $($(#[doc = $doc:literal])* $name:ident : $ty:ident $(in [$($choice:literal),* $(,)?])? $(= $default:expr)?),* $(,)?
    }) => {
        $(#[$outer])*
        #[derive(Debug, Clone)]
        $vis struct $struct {
            $($(#[doc = $doc])* $name: $ty,)*
        }

        impl $struct {
            const DECLARATION: $crate::settings::Declaration = $crate::settings::Declaration::new()
                $(.setting(
                    stringify!($name),
                    <$ty as $crate::settings::Setting>::TYPE,
                    concat!($(stringify!($default))?),
                    concat!($("[", $crate::settings!(@list $($choice),*), "]")?),
                    concat!($($doc),*),
                ))*
                .end();

            /// Reads the settings that the policy gives.
            $vis fn read() -> $crate::Result<Self> {
                Ok(Self { $($name: $crate::settings::read(stringify!($name))?,)* })
            }
        }

        const _: () = {
            #[used]
            #[unsafe(link_section = "cloister.settings")]
            static SECTION: [u8; $struct::DECLARATION.length()] = $struct::DECLARATION.bytes();
        };
    };
    (@list) => { "" };
    (@list $first:literal $(, $rest:literal)*) => { concat!(stringify!($first) $(, ",", stringify!($rest))*) };
}
