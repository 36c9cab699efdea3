//! Collateral of a simulated authority: the JSON that Intel's provisioning service would give.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::standing::Standing;
use super::{CPU_SVN, PCE_ID, PCE_SVN, QE_ISV_SVN, TEE_TCB_SVN};
use crate::encoding::hex;
use crate::time;

/// Signer of the simulated quoting enclave.
pub(super) fn qe_signer() -> [u8; 32] {
    Sha256::digest(b"SIMULATED quoting enclave signer").into()
}

/// TCB info v3 for TDX: the simulated platform has that status; with older security versions it is out of date.
pub(super) fn tcb_info(issued: u64, next_update: u64, standing: &Standing) -> Value {
    let zeros = "0".repeat(96);
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": time::format(issued),
        "nextUpdate": time::format(next_update),
        "fmspc": hex(&standing.fmspc),
        "pceId": hex(&PCE_ID),
        "tcbType": 0,
        "tcbEvaluationDataNumber": 1,
        "tdxModule": module(&zeros),
        "tdxModuleIdentities": [{
            "id": "TDX_01",
            "mrsigner": zeros,
            "attributes": "0000000000000000",
            "attributesMask": "FFFFFFFFFFFFFFFF",
            "tcbLevels": [
                module_level(TEE_TCB_SVN[0], "UpToDate"),
                module_level(0, "OutOfDate"),
            ],
        }],
        "tcbLevels": [
            level(CPU_SVN, TEE_TCB_SVN, u16::from(PCE_SVN), &standing.tcb_status),
            level([0; 16], [0; 16], 0, "OutOfDate"),
        ],
    })
}

fn module(mrsigner: &str) -> Value {
    json!({ "mrsigner": mrsigner, "attributes": "0000000000000000", "attributesMask": "FFFFFFFFFFFFFFFF" })
}

fn module_level(isvsvn: u8, status: &str) -> Value {
    let mut level = json!({ "tcb": { "isvsvn": isvsvn }, "tcbDate": TCB_DATE, "tcbStatus": status });
    advise(&mut level, status);
    level
}

fn level(cpu: [u8; 16], tdx: [u8; 16], pce_svn: u16, status: &str) -> Value {
    let components = |svns: [u8; 16]| svns.map(|svn| json!({ "svn": svn })).to_vec();
    let mut level = json!({
        "tcb": { "sgxtcbcomponents": components(cpu), "pcesvn": pce_svn, "tdxtcbcomponents": components(tdx) },
        "tcbDate": TCB_DATE,
        "tcbStatus": status,
    });
    advise(&mut level, status);
    level
}

fn advise(level: &mut Value, status: &str) {
    if status == "OutOfDate" {
        level["advisoryIDs"] = json!(["SIMULATED-SA-00001"]);
    }
}

/// Identity of the simulated quoting enclave.
pub(super) fn qe_identity(issued: u64, next_update: u64) -> Value {
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": time::format(issued),
        "nextUpdate": time::format(next_update),
        "tcbEvaluationDataNumber": 1,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex(&qe_signer()),
        "isvprodid": 2,
        "tcbLevels": [{ "tcb": { "isvsvn": QE_ISV_SVN }, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate" }],
    })
}

const TCB_DATE: &str = "2026-01-01T00:00:00Z";
