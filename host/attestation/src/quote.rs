//! The structure of a TDX quote, read in bounds and without trust: version 4 (TD report 1.0) and version 5 (1.0, 1.5).
//!
//! Layouts: Intel, *TDX DCAP Quoting Library API*, appendix "Quote format": header (48 bytes), body, u32 length of the
//! signature data, signature data. Nothing here verifies a signature; [`crate::Verifier`] does.

use crate::encoding::hex;

/// Longest quote read, in bytes. Real ones take about 5,000; some hosts pad them to 8,000.
pub const MAX_QUOTE_BYTES: usize = 16 * 1024;

const HEADER: usize = 48;
const BODY_10: usize = 584;
const BODY_15: usize = 648;
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

/// What the TDX module reported of a TD. Byte arrays stand as in the quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdReport {
    /// Security versions of the TDX module and of what loads it, at the TD's launch.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module (zero for Intel's, or its hash).
    pub mrseam: [u8; 48],
    /// Signer of the TDX module (zero for Intel).
    pub mrsignerseam: [u8; 48],
    /// Attributes of the TDX module.
    pub seam_attributes: [u8; 8],
    /// TD attributes; bit 0 is debug.
    pub attributes: [u8; 8],
    /// CPU features that the TD may use.
    pub xfam: [u8; 8],
    /// Measurement of the TD's first contents.
    pub mrtd: [u8; 48],
    /// What the owner configured: in a Confidential Containers pod, the hash of its initdata.
    pub mrconfigid: [u8; 48],
    /// Owner of the TD.
    pub mrowner: [u8; 48],
    /// What the owner set.
    pub mrownerconfig: [u8; 48],
    /// Run-time measurement registers 0 to 3.
    pub rtmr: [[u8; 48]; 4],
    /// What the TD asked to have quoted.
    pub report_data: [u8; 64],
    /// TDX 1.5: the security versions now.
    pub tee_tcb_svn2: Option<[u8; 16]>,
    /// TDX 1.5: service TDs bound to this one (zero for none).
    pub mrservicetd: Option<[u8; 48]>,
}

impl TdReport {
    /// Whether the TD runs in debug mode: its host can read it.
    pub fn debug(&self) -> bool {
        self.attributes[0] & 1 != 0
    }

    /// Whether two reports are of the same TD in the same state: all but the report data and the security versions
    /// that a module update may raise while the TD lives.
    pub fn same_td(&self, other: &Self) -> bool {
        let blank = |report: &Self| Self {
            report_data: [0; 64],
            tee_tcb_svn2: None,
            ..report.clone()
        };
        blank(self) == blank(other)
    }

    /// The report's measurements by their names, for people: MRTD, RTMR0 to 3 and the rest, in hexadecimal.
    pub fn named(&self) -> Vec<(&'static str, String)> {
        vec![
            ("mrtd", hex(&self.mrtd)),
            ("rtmr0", hex(&self.rtmr[0])),
            ("rtmr1", hex(&self.rtmr[1])),
            ("rtmr2", hex(&self.rtmr[2])),
            ("rtmr3", hex(&self.rtmr[3])),
            ("mrseam", hex(&self.mrseam)),
            ("mrsignerseam", hex(&self.mrsignerseam)),
            ("mrconfigid", hex(&self.mrconfigid)),
            ("mrowner", hex(&self.mrowner)),
            ("mrownerconfig", hex(&self.mrownerconfig)),
            ("attributes", hex(&self.attributes)),
            ("xfam", hex(&self.xfam)),
            ("seam_attributes", hex(&self.seam_attributes)),
            ("tee_tcb_svn", hex(&self.tee_tcb_svn)),
            ("report_data", hex(&self.report_data)),
        ]
    }
}

/// A quote taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote<'a> {
    /// Quote format: 4 or 5.
    pub version: u16,
    /// What is reported of the TD.
    pub report: TdReport,
    /// The quote without padding behind it: what is verified.
    pub bytes: &'a [u8],
    /// Certificate chain of the platform's key (PCK), PEM, leaf first.
    pub pck_chain: &'a [u8],
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
        let report = read_body(&mut reader, version)?;
        let pck_chain = read_signature_data(reader.sized("signature data")?)?;
        if reader.rest.iter().any(|&byte| byte != 0) {
            return Err(QuoteError::Trailing {
                seen: reader.rest.len(),
            });
        }
        let bytes = &input[..input.len() - reader.rest.len()];
        Ok(Self {
            version,
            report,
            bytes,
            pck_chain,
        })
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

fn read_body(reader: &mut Reader<'_>, version: u16) -> Result<TdReport, QuoteError> {
    if version == 4 {
        return read_report(
            &mut Reader {
                rest: reader.take(BODY_10, "TD report")?,
            },
            false,
        );
    }
    let kind = reader.u16("body type")?;
    expect("body type", kind, &[2, 3], "2 (TD report 1.0) or 3 (1.5)")?;
    let body = reader.sized("TD report")?;
    let long = kind == 3;
    let wanted = if long { BODY_15 } else { BODY_10 };
    if body.rest.len() != wanted {
        let wanted = if long { "648" } else { "584" };
        return Err(QuoteError::Field {
            field: "body size",
            seen: body.rest.len() as u64,
            wanted,
        });
    }
    read_report(&mut Reader { rest: body.rest }, long)
}

fn read_report(body: &mut Reader<'_>, long: bool) -> Result<TdReport, QuoteError> {
    let field = "TD report";
    let report = TdReport {
        tee_tcb_svn: body.array(field)?,
        mrseam: body.array(field)?,
        mrsignerseam: body.array(field)?,
        seam_attributes: body.array(field)?,
        attributes: body.array(field)?,
        xfam: body.array(field)?,
        mrtd: body.array(field)?,
        mrconfigid: body.array(field)?,
        mrowner: body.array(field)?,
        mrownerconfig: body.array(field)?,
        rtmr: [
            body.array(field)?,
            body.array(field)?,
            body.array(field)?,
            body.array(field)?,
        ],
        report_data: body.array(field)?,
        tee_tcb_svn2: if long { Some(body.array(field)?) } else { None },
        mrservicetd: if long { Some(body.array(field)?) } else { None },
    };
    body.end()?;
    Ok(report)
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
            quote[0] = 5;
            let _ = Quote::parse(&quote);
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
