//! Names of the bits of TD attributes and XFAM.
//!
//! Sources: Intel TDX Module ABI Specification (348551), table "ATTRIBUTES"; Intel SDM volume 1, "XSAVE-managed state",
//! whose numbering XFAM follows.

/// TD attributes that have a name.
const ATTRIBUTES: [(u32, &str); 13] = [
    (0, "DEBUG"),
    (4, "HGS_PLUS_PROF"),
    (5, "PERF_PROF"),
    (6, "PMT_PROF"),
    (16, "ICSSD"),
    (17, "SERVTD_EXT"),
    (27, "LASS"),
    (28, "SEPT_VE_DISABLE"),
    (29, "MIGRATABLE"),
    (30, "PKS"),
    (31, "KL"),
    (62, "TPA"),
    (63, "PERFMON"),
];

/// CPU features that have a name.
const XFAM: [(u32, &str); 20] = [
    (0, "X87"),
    (1, "SSE"),
    (2, "AVX"),
    (3, "MPX_BNDREGS"),
    (4, "MPX_BNDCSR"),
    (5, "AVX512_OPMASK"),
    (6, "AVX512_ZMM_HI256"),
    (7, "AVX512_HI16_ZMM"),
    (8, "PT"),
    (9, "PKRU"),
    (10, "PASID"),
    (11, "CET_U"),
    (12, "CET_S"),
    (13, "HDC"),
    (14, "UINTR"),
    (15, "LBR"),
    (16, "HWP"),
    (17, "AMX_TILECFG"),
    (18, "AMX_TILEDATA"),
    (19, "APX"),
];

/// The names of the TD attributes that are set, lowest bit first; a bit without a name is `BIT_n`.
pub fn attribute_names(attributes: &[u8; 8]) -> Vec<String> {
    names(*attributes, &ATTRIBUTES)
}

/// The names of the CPU features that are on, lowest bit first; a bit without a name is `BIT_n`.
pub fn xfam_names(xfam: &[u8; 8]) -> Vec<String> {
    names(*xfam, &XFAM)
}

fn names(register: [u8; 8], known: &[(u32, &str)]) -> Vec<String> {
    let register = u64::from_le_bytes(register);
    let set = (0..64).filter(|bit| register >> bit & 1 == 1);
    set.map(|bit| {
        let name = known.iter().find(|(at, _)| *at == bit);
        name.map_or_else(|| format!("BIT_{bit}"), |(_, name)| (*name).to_owned())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_names() {
        assert_eq!(attribute_names(&[0, 0, 0, 0x10, 0, 0, 0, 0]), ["SEPT_VE_DISABLE"]);
        assert_eq!(
            attribute_names(&[1, 0, 0, 0x60, 0, 0, 0, 0x80]),
            ["DEBUG", "MIGRATABLE", "PKS", "PERFMON"]
        );
        assert_eq!(attribute_names(&[2, 0, 0, 0, 0, 0, 0, 0]), ["BIT_1"]);
        assert_eq!(
            xfam_names(&[0xe7, 2, 6, 0, 0, 0, 0, 0]),
            [
                "X87",
                "SSE",
                "AVX",
                "AVX512_OPMASK",
                "AVX512_ZMM_HI256",
                "AVX512_HI16_ZMM",
                "PKRU",
                "AMX_TILECFG",
                "AMX_TILEDATA"
            ]
        );
        assert!(xfam_names(&[0; 8]).is_empty());
    }
}
