//! The structure of a TDX quote, read in bounds and without trust: version 4 (TD report 1.0) and version 5 (1.0, 1.5,
//! 1.5 extended).
//!
//! Layouts: Intel, *TDX DCAP Quoting Library API*, appendix "Quote format": header (48 bytes), body, u32 length of the
//! signature data, signature data. Nothing here verifies a signature; [`crate::Verifier`] does.

mod bits;
mod report;

pub use bits::{attribute_names, xfam_names};
pub use report::{TdExtension, TdReport};

/// Longest quote read, in bytes. Real ones take about 5,000.
pub const MAX_QUOTE_BYTES: usize = 16 * 1024;
/// Longest quote with its padding that is taken from a provider, in bytes. Some hosts pad quotes to 8,000 and more.
pub const MAX_PADDED_QUOTE_BYTES: usize = 64 * 1024;

const HEADER: usize = 48;
const BODY_10: usize = 584;
const BODY_15: usize = 648;
const BODY_15_EX: usize = 885;
const TEE_TDX: u32 = 0x81;
const KEY_ECDSA_P256: u16 = 2;
const CERT_QE_REPORT: u16 = 6;
const CERT_PCK_CHAIN: u16 = 5;
/// Signature, attestation key.
const SIGNATURE_AND_KEY: usize = 128;
/// QE report and its signature.
const QE_REPORT_AND_SIGNATURE: usize = 384 + 64;
/// dcap-qvl and Intel's QE: authentication data of the quoting enclave is 32 bytes.
const QE_AUTH: usize = 32;

/// Why bytes are no TDX quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Longer than a quote can be.
    #[error("a quote of {seen} bytes, wanted at most {MAX_QUOTE_BYTES}")]
    TooLong {
        /// Its length, in bytes.
        seen: usize,
    },
    /// It ends inside a field.
    #[error("the quote ends inside its {field}")]
    Short {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that is not taken here.
    #[error("the quote's {field} is {seen}, wanted {wanted}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it says.
        seen: u64,
        /// What is taken.
        wanted: &'static str,
    },
    /// Something other than zeros follows the quote.
    #[error("{seen} bytes follow the quote that are not padding, wanted none or zeros")]
    Trailing {
        /// How many bytes.
        seen: usize,
    },
}

/// Which TD report a quote carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// TD report 1.0, 584 bytes.
    Td10,
    /// TD report 1.5, 648 bytes.
    Td15,
    /// TD report 1.5 with its extension, 885 bytes.
    Td15Ex,
}

impl Body {
    /// The usual name: `TD10`, `TD15`, `TD15Ex`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Td10 => "TD10",
            Self::Td15 => "TD15",
            Self::Td15Ex => "TD15Ex",
        }
    }

    fn size(self) -> usize {
        match self {
            Self::Td10 => BODY_10,
            Self::Td15 => BODY_15,
            Self::Td15Ex => BODY_15_EX,
        }
    }
}

/// A quote taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote<'a> {
    /// Quote format: 4 or 5.
    pub version: u16,
    /// Which report it carries.
    pub body: Body,
    /// What is reported of the TD.
    pub report: TdReport,
    /// The quote without padding behind it: what is verified.
    pub bytes: &'a [u8],
    /// How many zero bytes follow it.
    pub padding: usize,
    /// Certificate chain of the platform's key (PCK), PEM, leaf first.
    pub pck_chain: &'a [u8],
}

/// What can be told of bytes that may be no sound quote: for showing a refusal. Nothing may be decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glimpse {
    /// Quote format.
    pub version: Option<u16>,
    /// What is reported of the TD, if the bytes go that far.
    pub report: Option<TdReport>,
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], QuoteError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(QuoteError::Short { field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], QuoteError> {
        self.take(N, field)?.try_into().map_err(|_| QuoteError::Short { field })
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, QuoteError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, QuoteError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn sized(&mut self, field: &'static str) -> Result<Reader<'a>, QuoteError> {
        let len = usize::try_from(self.u32(field)?).map_err(|_| QuoteError::Short { field })?;
        Ok(Reader {
            rest: self.take(len, field)?,
        })
    }

    fn end(&self) -> Result<(), QuoteError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(QuoteError::Trailing { seen: self.rest.len() })
        }
    }
}

fn expect(field: &'static str, seen: impl Into<u64>, accepted: &[u64], wanted: &'static str) -> Result<(), QuoteError> {
    let seen = seen.into();
    if accepted.contains(&seen) {
        Ok(())
    } else {
        Err(QuoteError::Field { field, seen, wanted })
    }
}

impl<'a> Quote<'a> {
    /// Takes a quote apart. Zeros behind it are cut off (some hosts pad quotes); anything else is refused.
    ///
    /// # Errors
    /// [`QuoteError`] names the field.
    pub fn parse(input: &'a [u8]) -> Result<Self, QuoteError> {
        if input.len() > MAX_QUOTE_BYTES {
            return Err(QuoteError::TooLong { seen: input.len() });
        }
        let mut reader = Reader { rest: input };
        let version = read_header(reader.take(HEADER, "header")?)?;
        let (body, report) = read_body(&mut reader, version)?;
        let pck_chain = read_signature_data(reader.sized("signature data")?)?;
        let padding = reader.rest.len();
        if reader.rest.iter().any(|&byte| byte != 0) {
            return Err(QuoteError::Trailing { seen: padding });
        }
        Ok(Self {
            version,
            body,
            report,
            bytes: &input[..input.len() - padding],
            padding,
            pck_chain,
        })
    }

    /// A quote without the zeros that its host put behind it. What follows it is looked at, what it says is not: the PCK chain
    /// ends with a zero of its own, so cutting zeros off the end would cut the quote.
    ///
    /// # Errors
    /// [`QuoteError`] if it ends early, or something other than zeros follows it.
    pub fn without_padding(input: &'a [u8]) -> Result<&'a [u8], QuoteError> {
        let mut reader = Reader { rest: input };
        let version = read_header(reader.take(HEADER, "header")?)?;
        read_body(&mut reader, version)?;
        reader.sized("signature data")?;
        let padding = reader.rest;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(QuoteError::Trailing { seen: padding.len() });
        }
        Ok(&input[..input.len() - padding.len()])
    }

    /// As much of version and report as the bytes give, whatever follows.
    pub fn glimpse(input: &[u8]) -> Glimpse {
        let mut reader = Reader { rest: input };
        let header = reader.take(HEADER, "header");
        let Ok(version) = header.and_then(read_header) else {
            return Glimpse::default();
        };
        let report = read_body(&mut reader, version).ok().map(|(_, report)| report);
        Glimpse {
            version: Some(version),
            report,
        }
    }
}

fn read_header(header: &[u8]) -> Result<u16, QuoteError> {
    let mut reader = Reader { rest: header };
    let version = reader.u16("version")?;
    expect("version", version, &[4, 5], "4 or 5")?;
    expect(
        "key type",
        reader.u16("key type")?,
        &[KEY_ECDSA_P256.into()],
        "2 (ECDSA P-256)",
    )?;
    expect("TEE type", reader.u32("TEE type")?, &[TEE_TDX.into()], "0x81 (TDX)")?;
    Ok(version)
}

fn read_body(reader: &mut Reader<'_>, version: u16) -> Result<(Body, TdReport), QuoteError> {
    if version == 4 {
        let rest = reader.take(BODY_10, "TD report")?;
        return Ok((Body::Td10, read_report(&mut Reader { rest }, Body::Td10)?));
    }
    let kind = reader.u16("body type")?;
    let body = match kind {
        2 => Body::Td10,
        3 => Body::Td15,
        4 => Body::Td15Ex,
        _ => {
            return Err(QuoteError::Field {
                field: "body type",
                seen: kind.into(),
                wanted: "2 (TD report 1.0), 3 (1.5) or 4 (1.5 extended)",
            });
        }
    };
    let mut bytes = reader.sized("TD report")?;
    let wanted = match body {
        Body::Td10 => "584",
        Body::Td15 => "648",
        Body::Td15Ex => "885",
    };
    expect("body size", bytes.rest.len() as u64, &[body.size() as u64], wanted)?;
    Ok((body, read_report(&mut bytes, body)?))
}

fn read_report(bytes: &mut Reader<'_>, body: Body) -> Result<TdReport, QuoteError> {
    let field = "TD report";
    let long = body != Body::Td10;
    let report = TdReport {
        tee_tcb_svn: bytes.array(field)?,
        mrseam: bytes.array(field)?,
        mrsignerseam: bytes.array(field)?,
        seam_attributes: bytes.array(field)?,
        attributes: bytes.array(field)?,
        xfam: bytes.array(field)?,
        mrtd: bytes.array(field)?,
        mrconfigid: bytes.array(field)?,
        mrowner: bytes.array(field)?,
        mrownerconfig: bytes.array(field)?,
        rtmr: [
            bytes.array(field)?,
            bytes.array(field)?,
            bytes.array(field)?,
            bytes.array(field)?,
        ],
        report_data: bytes.array(field)?,
        tee_tcb_svn2: if long { Some(bytes.array(field)?) } else { None },
        mrservicetd: if long { Some(bytes.array(field)?) } else { None },
        extension: if body == Body::Td15Ex {
            Some(Box::new(read_extension(bytes)?))
        } else {
            None
        },
    };
    bytes.end()?;
    Ok(report)
}

fn read_extension(bytes: &mut Reader<'_>) -> Result<TdExtension, QuoteError> {
    let field = "TD report's extension";
    let [vmid] = bytes.array(field)?;
    Ok(TdExtension {
        vmid,
        td_id: bytes.array(field)?,
        dev_info: bytes.array(field)?,
        init_servicetd_hash: bytes.array(field)?,
        init_servicetd_attributes: bytes.array(field)?,
        init_tcb: bytes.array(field)?,
        cur_servicetd_hash: bytes.array(field)?,
        cur_servicetd_attributes: bytes.array(field)?,
    })
}

/// Gives the PCK chain. Every length has to come out even: bytes hidden between fields would be signed by nobody.
fn read_signature_data<'a>(mut data: Reader<'a>) -> Result<&'a [u8], QuoteError> {
    data.take(SIGNATURE_AND_KEY, "signature and attestation key")?;
    expect(
        "certification type",
        data.u16("certification type")?,
        &[CERT_QE_REPORT.into()],
        "6 (QE report)",
    )?;
    let mut qe = data.sized("QE certification data")?;
    data.end()?;
    qe.take(QE_REPORT_AND_SIGNATURE, "QE report")?;
    let auth = qe.u16("QE authentication data")?;
    expect("QE authentication data's length", auth, &[QE_AUTH as u64], "32")?;
    qe.take(QE_AUTH, "QE authentication data")?;
    expect(
        "QE certification type",
        qe.u16("QE certification type")?,
        &[CERT_PCK_CHAIN.into()],
        "5 (PCK chain)",
    )?;
    let chain = qe.sized("PCK chain")?;
    qe.end()?;
    Ok(chain.rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1200)) {
            let _ = Quote::parse(&bytes);
            let mut quote = vec![4, 0, 2, 0, 0x81, 0, 0, 0];
            quote.extend_from_slice(&bytes);
            let _ = Quote::parse(&quote);
            let _ = Quote::glimpse(&quote);
            quote[0] = 5;
            let _ = Quote::parse(&quote);
            let _ = Quote::glimpse(&quote);
        }
    }

    #[test]
    fn other_tees_and_versions_are_named() {
        let mut sgx = vec![0; 48];
        sgx[0] = 3;
        assert!(matches!(
            Quote::parse(&sgx),
            Err(QuoteError::Field {
                field: "version",
                seen: 3,
                ..
            })
        ));
        sgx[0] = 4;
        sgx[2] = 2;
        assert!(matches!(
            Quote::parse(&sgx),
            Err(QuoteError::Field {
                field: "TEE type",
                seen: 0,
                ..
            })
        ));
        assert!(matches!(Quote::parse(&[]), Err(QuoteError::Short { field: "header" })));
        assert!(matches!(
            Quote::parse(&[0; MAX_QUOTE_BYTES + 1]),
            Err(QuoteError::TooLong { .. })
        ));
    }
}
