//! What the TDX module reported of a TD: TD report 1.0, 1.5 and 1.5 with its extension.

use crate::encoding::hex;

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
    /// TDX 1.5 with its extension: identity, devices and service TDs.
    pub extension: Option<Box<TdExtension>>,
}

/// What the extended TD report 1.5 (body type 4) says besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdExtension {
    /// Which virtual machine of a partitioned TD asked for the report; 0 for the TD itself.
    pub vmid: u8,
    /// Unique id of this run of the TD.
    pub td_id: [u8; 32],
    /// Hash over the devices that are assigned to the TD (zero for none).
    pub dev_info: [u8; 48],
    /// Hash over the service TDs bound when the TD was made (zero for none).
    pub init_servicetd_hash: [u8; 48],
    /// Their attributes.
    pub init_servicetd_attributes: [u8; 8],
    /// Security versions of processor and TDX module when the TD was made, and the model that they were taken on.
    pub init_tcb: [u8; 44],
    /// Hash over the service TDs that are bound now (zero for none).
    pub cur_servicetd_hash: [u8; 48],
    /// Their attributes.
    pub cur_servicetd_attributes: [u8; 8],
}

/// TD attributes that the ABI calls reserved (348551-008US, table 3.23): bits 1-3, 7-15, 23-26, 32-61.
const RESERVED_ATTRIBUTES: u64 = 0x3fff_ffff_0780_ff8e;

impl TdReport {
    /// Whether the TD runs in debug mode: its host can read it.
    pub fn debug(&self) -> bool {
        self.attributes[0] & 1 != 0
    }

    /// Whether the host may profile the TD, which tells much of what it computes.
    pub fn profiled(&self) -> bool {
        self.attributes[0] & 0x70 != 0
    }

    /// Whether the TD can be moved to another machine by a migration TD.
    pub fn migratable(&self) -> bool {
        self.attributes[3] & 0x20 != 0
    }

    /// Whether the host can't make the TD run code by taking a page away (SEPT_VE_DISABLE).
    pub fn sept_ve_disabled(&self) -> bool {
        self.attributes[3] & 0x10 != 0
    }

    /// Whether service TDs are or were bound to this one.
    pub fn service_tds(&self) -> bool {
        let extension = self.extension.as_deref();
        let hashes = [
            self.mrservicetd.as_ref(),
            extension.map(|extension| &extension.init_servicetd_hash),
            extension.map(|extension| &extension.cur_servicetd_hash),
        ];
        self.attributes[2] & 2 != 0 || hashes.into_iter().flatten().any(|hash| *hash != [0; 48])
    }

    /// Whether attributes are set that have no meaning yet.
    pub fn reserved_attributes(&self) -> bool {
        u64::from_le_bytes(self.attributes) & RESERVED_ATTRIBUTES != 0
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
        let mut named = vec![
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
            ("seam_attributes", hex(&self.seam_attributes)),
            ("tee_tcb_svn", hex(&self.tee_tcb_svn)),
            ("report_data", hex(&self.report_data)),
        ];
        named.extend(self.tee_tcb_svn2.map(|value| ("tee_tcb_svn2", hex(&value))));
        named.extend(self.mrservicetd.map(|value| ("mrservicetd", hex(&value))));
        if let Some(extension) = &self.extension {
            named.extend([
                ("vmid", extension.vmid.to_string()),
                ("td_id", hex(&extension.td_id)),
                ("dev_info", hex(&extension.dev_info)),
                ("init_servicetd_hash", hex(&extension.init_servicetd_hash)),
                ("cur_servicetd_hash", hex(&extension.cur_servicetd_hash)),
            ]);
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_bits_are_those_of_the_abi() {
        let defined = [0u32, 4, 5, 6, 16, 17, 18, 19, 20, 21, 22, 27, 28, 29, 30, 31, 62, 63];
        for bit in 0..64 {
            assert_eq!(RESERVED_ATTRIBUTES >> bit & 1 == 0, defined.contains(&bit), "bit {bit}");
        }
    }
}
