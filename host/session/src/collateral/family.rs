//! Which platforms collateral is for.

use std::fmt;
use std::str::FromStr;

use cloister_attestation::ClaimedPlatform;
use cloister_attestation::encoding::{from_hex, hex};

/// Who issued a platform's certificate. Most machines that run TDX are under `Platform`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Authority {
    /// Platforms of one or more packages that are registered as a whole.
    #[default]
    Platform,
    /// Single processors.
    Processor,
}

impl Authority {
    /// The name in questions and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Processor => "processor",
        }
    }
}

/// Platforms of one family whose certificates one authority issued: what a set of collateral is for. A family may have
/// platforms under both, and each authority has a revocation list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlatformFamily {
    /// The family.
    pub fmspc: [u8; 6],
    /// Who issued the certificates.
    pub authority: Authority,
}

impl From<[u8; 6]> for PlatformFamily {
    fn from(fmspc: [u8; 6]) -> Self {
        let authority = Authority::default();
        Self { fmspc, authority }
    }
}

impl From<&ClaimedPlatform> for PlatformFamily {
    fn from(claimed: &ClaimedPlatform) -> Self {
        // Intel names them "Intel SGX PCK Platform CA" and "Intel SGX PCK Processor CA".
        let authority = if claimed.authority.contains("Processor") {
            Authority::Processor
        } else {
            Authority::Platform
        };
        let fmspc = claimed.fmspc;
        Self { fmspc, authority }
    }
}

/// A text is no family of platforms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{seen:?} is no platform family: an FMSPC, 12 hexadecimal digits, is wanted, and \"/processor\" behind it for platforms under the \
     processors' authority; `cloister quote show QUOTE` tells the FMSPC of a quote's platform"
)]
pub struct NoFamily {
    /// The text.
    pub seen: String,
}

impl FromStr for PlatformFamily {
    type Err = NoFamily;

    fn from_str(text: &str) -> Result<Self, NoFamily> {
        let wrong = || NoFamily { seen: text.to_owned() };
        let (digits, authority) = match text.split_once('/') {
            None => (text, Authority::Platform),
            Some((digits, "platform")) => (digits, Authority::Platform),
            Some((digits, "processor")) => (digits, Authority::Processor),
            Some(_) => return Err(wrong()),
        };
        let fmspc = from_hex(digits).ok_or_else(wrong)?;
        Ok(Self { fmspc, authority })
    }
}

impl fmt::Display for PlatformFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.fmspc))?;
        match self.authority {
            Authority::Platform => Ok(()),
            Authority::Processor => f.write_str("/processor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_familys_text_names_its_authority_where_that_is_not_the_usual_one() {
        for text in ["00806f050000", "b0c06f000000/processor"] {
            assert_eq!(text.parse::<PlatformFamily>().unwrap().to_string(), text);
        }
        let named: PlatformFamily = "00806F050000/platform".parse().unwrap();
        assert_eq!(named, [0, 0x80, 0x6f, 5, 0, 0].into());
        for bad in [
            "",
            "00806f05000",
            "00806f050000/",
            "00806f050000/root",
            "/processor",
            "zz806f050000",
        ] {
            let error = bad.parse::<PlatformFamily>().unwrap_err();
            assert!(error.to_string().contains("12 hexadecimal digits"), "{error}");
        }
    }

    #[test]
    fn a_quotes_certificate_tells_the_authority() {
        let claimed = |name: &str| ClaimedPlatform {
            fmspc: [7; 6],
            authority: name.to_owned(),
        };
        for (name, authority) in [
            ("CN=Intel SGX PCK Platform CA, O=Intel", Authority::Platform),
            ("CN=Intel SGX PCK Processor CA, O=Intel", Authority::Processor),
        ] {
            assert_eq!(PlatformFamily::from(&claimed(name)).authority, authority);
        }
    }
}
