//! The section `[collateral]`.

use std::path::PathBuf;

use serde::Deserialize;

/// Where the collateral comes from that peers' quotes are judged by.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollateralSource {
    /// A PCCS, or Intel's PCS (`https://api.trustedservices.intel.com`).
    pub url: Option<String>,
    /// In place of a service: a file as `cloister quote collateral` writes it. It is read again when it changes.
    pub bundle: Option<PathBuf>,
    /// The folder where it is kept, with the highest numbers that were seen.
    pub cache: PathBuf,
    /// Authorities for HTTPS, PEM; the system's, if not given.
    pub authorities: Option<PathBuf>,
    /// Platform families to fetch for, beside those of the policy: FMSPC, and `/processor` behind it for platforms under the
    /// processors' authority.
    #[serde(default)]
    pub platforms: Vec<String>,
}

impl CollateralSource {
    /// What of it goes together with nothing.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if self.url.is_some() == self.bundle.is_some() {
            return Some(
                "[collateral] wants exactly one of `url` (a PCCS, or Intel's PCS) and `bundle` (a file of `cloister quote collateral`)",
            );
        }
        let of_service = self.authorities.is_some() || !self.platforms.is_empty();
        (self.bundle.is_some() && of_service).then_some(
            "`authorities` and `platforms` of [collateral] are for a service; a bundle holds what it was made for",
        )
    }
}
