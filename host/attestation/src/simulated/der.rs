//! The extension of a platform certificate (PCK) that Intel defines: *SGX PCK Certificate and CRL Profile*, section 1.3.

/// 1.2.840.113741.1.13.1, as rcgen takes it.
pub(super) const SGX_EXTENSION: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];
/// The same in DER, without tag and length.
const SGX_OID: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const BOOLEAN: u8 = 0x01;
const SEQUENCE: u8 = 0x30;

/// What the extension says of a simulated platform.
pub(super) struct PckFields {
    pub(super) ppid: [u8; 16],
    pub(super) cpu_svn: [u8; 16],
    pub(super) pce_svn: u8,
    pub(super) pce_id: [u8; 2],
    pub(super) fmspc: [u8; 6],
    pub(super) instance_id: [u8; 16],
}

/// The extension's content.
pub(super) fn pck_extension(fields: &PckFields) -> Vec<u8> {
    let components = (1u8..=16)
        .zip(fields.cpu_svn)
        .map(|(i, svn)| entry(&[2, i], &tlv(INTEGER, &[svn])));
    let mut tcb: Vec<u8> = components.flatten().collect();
    tcb.extend(entry(&[2, 17], &tlv(INTEGER, &[fields.pce_svn])));
    tcb.extend(entry(&[2, 18], &tlv(OCTET_STRING, &fields.cpu_svn)));
    let mut configuration = entry(&[7, 1], &tlv(BOOLEAN, &[0]));
    configuration.extend(entry(&[7, 2], &tlv(BOOLEAN, &[0])));
    configuration.extend(entry(&[7, 3], &tlv(BOOLEAN, &[0xff])));
    let mut all = entry(&[1], &tlv(OCTET_STRING, &fields.ppid));
    all.extend(entry(&[2], &tlv(SEQUENCE, &tcb)));
    all.extend(entry(&[3], &tlv(OCTET_STRING, &fields.pce_id)));
    all.extend(entry(&[4], &tlv(OCTET_STRING, &fields.fmspc)));
    all.extend(entry(&[5], &tlv(ENUMERATED, &[1])));
    all.extend(entry(&[6], &tlv(OCTET_STRING, &fields.instance_id)));
    all.extend(entry(&[7], &tlv(SEQUENCE, &configuration)));
    tlv(SEQUENCE, &all)
}

/// SEQUENCE of the extension's id with further arcs (each below 128) and a value.
fn entry(arcs: &[u8], value: &[u8]) -> Vec<u8> {
    let oid = [&SGX_OID[..], arcs].concat();
    tlv(SEQUENCE, &[tlv(OID, &oid), value.to_vec()].concat())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(len) if len < 0x80 => out.push(len),
        Ok(len) => out.extend([0x81, len]),
        // The whole extension takes about 500 bytes: two length bytes always do.
        Err(_) => out.extend([0x82, (content.len() >> 8) as u8, (content.len() & 0xff) as u8]),
    }
    out.extend_from_slice(content);
    out
}
