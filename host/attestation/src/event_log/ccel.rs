//! The form of the CCEL: a header event of the older form, then events with digests of several algorithms.

use super::{EV_NO_ACTION, Event, EventLog, EventLogError, MAX_EVENTS, REGISTERS, runtime};

/// The number of MRTD, which no event extends, in place of a register's.
const MRTD: u32 = 0;
const SHA1_BYTES: usize = 20;
const SHA384: u16 = 0x0c;
/// Algorithm numbers of the TPM library specification, part 2, and the lengths of their digests: SHA-1, SHA-256, SHA-384,
/// SHA-512, SM3.
const ALGORITHMS: [(u16, usize); 5] = [(0x04, 20), (0x0b, 32), (SHA384, 48), (0x0d, 64), (0x12, 32)];
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, wanted: usize, what: &'static str) -> Result<&'a [u8], EventLogError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..wanted).ok_or(EventLogError::Cut {
            at: self.at,
            what,
            wanted,
            left: rest.len(),
        })?;
        self.at += wanted;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], EventLogError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, EventLogError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Bytes behind their length.
    fn counted(&mut self, what: &'static str) -> Result<&'a [u8], EventLogError> {
        let length = self.u32(what)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX), what)
    }
}

pub(super) fn parse(bytes: &[u8], most: usize) -> Result<EventLog, EventLogError> {
    if bytes.len() > most {
        return Err(EventLogError::TooLong {
            seen: bytes.len(),
            most,
        });
    }
    let mut reader = Reader { bytes, at: 0 };
    header(&mut reader)?;
    let mut log = EventLog::default();
    while reader.at < bytes.len() {
        let at = reader.at;
        let register = reader.u32("a register")?;
        if register == u32::MAX {
            break;
        }
        let kind = reader.u32("an event's type")?;
        let digests = digests(&mut reader)?;
        let data = reader.counted("an event's data")?;
        if kind == EV_NO_ACTION || register == MRTD {
            // Tells something, or is about the TD's first contents: nothing was extended.
            continue;
        }
        let register = (1..=REGISTERS)
            .position(|known| u32::try_from(known) == Ok(register))
            .ok_or(EventLogError::Value {
                at,
                what: "the register",
                seen: register,
                wanted: "1 to 4, which are RTMR0 to RTMR3",
            })?;
        let [digest] = digests[..] else {
            return Err(EventLogError::Digests {
                at,
                seen: digests.len(),
            });
        };
        log.push(Event {
            register,
            kind,
            digest,
            data: data.to_vec(),
            text: runtime::text(kind, &digest, data),
        })?;
    }
    Ok(log)
}

/// Skips the first event, if it is of the older form with a SHA-1 digest: it names the log's algorithms, and was not extended.
/// Where there is no firmware's table, Confidential Containers write one without its signature.
fn header(reader: &mut Reader<'_>) -> Result<(), EventLogError> {
    let kind = reader.bytes.get(4..8) == Some(&EV_NO_ACTION.to_le_bytes());
    let digest = reader.bytes.get(8..8 + SHA1_BYTES) == Some(&[0; SHA1_BYTES]);
    if !kind || !digest {
        return Ok(());
    }
    reader.take(8 + SHA1_BYTES, "the header")?;
    let at = reader.at;
    let data = reader.counted("the header's data")?;
    match data.first_chunk::<16>() {
        Some(signature) if signature == SIGNATURE || signature == &[0; 16] => Ok(()),
        _ => Err(EventLogError::Value {
            at,
            what: "a header of other data, whose length is",
            seen: u32::try_from(data.len()).unwrap_or(u32::MAX),
            wanted: "one that begins with \"Spec ID Event03\"",
        }),
    }
}

/// The SHA-384 digests among an event's digests.
fn digests(reader: &mut Reader<'_>) -> Result<Vec<[u8; 48]>, EventLogError> {
    let at = reader.at;
    let count = reader.u32("the number of digests")?;
    if usize::try_from(count).is_ok_and(|count| count > ALGORITHMS.len()) {
        return Err(EventLogError::Value {
            at,
            what: "the number of digests",
            seen: count,
            wanted: "at most 5",
        });
    }
    let mut found = Vec::new();
    for _ in 0..count {
        let at = reader.at;
        let algorithm = reader.array("a digest's algorithm").map(u16::from_le_bytes)?;
        let known = ALGORITHMS.iter().find(|(number, _)| *number == algorithm);
        let (_, length) = known.ok_or(EventLogError::Value {
            at,
            what: "a digest's algorithm",
            seen: algorithm.into(),
            wanted: "SHA-1, SHA-256, SHA-384, SHA-512 or SM3",
        })?;
        if algorithm == SHA384 {
            found.push(reader.array("a digest")?);
        } else {
            reader.take(*length, "a digest")?;
        }
    }
    Ok(found)
}

pub(super) fn write(events: &[Event]) -> Vec<u8> {
    let mut out = Vec::new();
    // TCG_EfiSpecIDEvent: platform class 0, version 2.0, errata 105, 8 bytes a UINTN, one algorithm, no vendor's data.
    let mut specification = SIGNATURE.to_vec();
    specification.extend_from_slice(&[0, 0, 0, 0, 0, 2, 105, 2]);
    specification.extend_from_slice(&1u32.to_le_bytes());
    specification.extend_from_slice(&SHA384.to_le_bytes());
    specification.extend_from_slice(&48u16.to_le_bytes());
    specification.push(0);
    put(&mut out, &[0, EV_NO_ACTION]);
    out.extend_from_slice(&[0; SHA1_BYTES]);
    put_counted(&mut out, &specification);
    for event in events.iter().take(MAX_EVENTS) {
        let register = u32::try_from(event.register + 1).unwrap_or(u32::MAX);
        put(&mut out, &[register, event.kind, 1]);
        out.extend_from_slice(&SHA384.to_le_bytes());
        out.extend_from_slice(&event.digest);
        put_counted(&mut out, &event.data);
    }
    out
}

fn put(out: &mut Vec<u8>, numbers: &[u32]) {
    numbers
        .iter()
        .for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn put_counted(out: &mut Vec<u8>, data: &[u8]) {
    put(out, &[u32::try_from(data.len()).unwrap_or(u32::MAX)]);
    out.extend_from_slice(data);
}
