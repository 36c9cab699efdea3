//! Simulated TDs: quotes of the real format under a root of one's own. They prove nothing about hardware.
//!
//! An authority is a folder (`cloister quote authority DIR`):
//!
//! | file | what |
//! | --- | --- |
//! | `root.der` | the root certificate: verifiers trust it, policies pin its key id |
//! | `collateral.json` | TCB info, QE identity, revocation lists and their chains, as dcap-qvl reads them |
//! | `pck-chain.pem` | the platform's certificate chain, which each quote carries |
//! | `platform-ca-chain.pem`, `tcb-signing-chain.pem` | chains that go into the collateral when it is re-issued |
//! | `keys/*.pem` | the keys: whoever has them makes TDs up |
//!
//! Verifiers get the folder without `keys`. All of it says SIMULATED: names of certificates, the header of each quote.

mod authority;
mod collateral;
mod der;
mod standing;
mod td;

pub use authority::{
    AuthorityError, COLLATERAL_DAYS, SimulatedAuthority, create_authority, issue_collateral, reissue_collateral,
    reissue_if_stale,
};
pub use standing::{Revocable, Standing};
pub use td::{SimulatedTd, TdOf15, TdValues};

/// Platform family of simulated platforms: `SIMULA` in ASCII.
pub const FMSPC: [u8; 6] = *b"SIMULA";
pub(crate) const PCE_ID: [u8; 2] = [0, 0];
/// Security versions of the simulated processor, all sixteen components.
pub(crate) const CPU_SVN: [u8; 16] = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
pub(crate) const PCE_SVN: u8 = 13;
/// Version 5 of TDX module 1.
pub(crate) const TEE_TCB_SVN: [u8; 16] = [5, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
pub(crate) const QE_ISV_SVN: u16 = 4;

#[cfg(test)]
mod tests;
