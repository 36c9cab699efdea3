//! Where this node's quotes come from: what the node file says, or what the machine has.

use std::sync::Arc;

use cloister_attestation::QuoteProvider;
use cloister_attestation::providers::{self, Places};
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues};

use super::config::{NodeConfig, Provider, Simulated};
use crate::ui::{Exit, fail, failed, unreadable};

/// The provider of the node file; without one there, the simulated TD if the file has one, else what this machine has.
pub fn choose(config: &NodeConfig) -> Result<Arc<dyn QuoteProvider>, miette::Report> {
    let places = Places::default();
    let provider: Arc<dyn QuoteProvider> = match (config.provider, &config.simulated) {
        (Some(Provider::Configfs), _) => Arc::new(places.kernel()),
        (Some(Provider::Coco), _) => Arc::new(places.pod()),
        (Some(Provider::Simulated) | None, Some(simulated)) => Arc::new(simulated_td(simulated)?),
        (Some(Provider::Simulated) | None, None) => {
            providers::find(&places).map_err(|error| fail(Exit::Failed, error))?
        }
    };
    match (config.provider, provider.simulated()) {
        (_, true) => tracing::info!("quotes are SIMULATED"),
        (Some(_), false) => tracing::info!("quotes come from {}, as the node file says", provider.name()),
        (None, false) => tracing::info!("quotes come from {}, which this machine has", provider.name()),
    }
    Ok(provider)
}

fn simulated_td(simulated: &Simulated) -> Result<SimulatedTd, miette::Report> {
    let authority = SimulatedAuthority::load(&simulated.authority).map_err(unreadable)?;
    let mut values = TdValues::default();
    for (key, text, register) in [
        ("mrtd", &simulated.mrtd, &mut values.mrtd),
        ("mrseam", &simulated.mrseam, &mut values.mrseam),
        ("mrconfigid", &simulated.mrconfigid, &mut values.mrconfigid),
    ] {
        set_register(key, text.as_deref(), register)?;
    }
    let texts = [&simulated.rtmr0, &simulated.rtmr1, &simulated.rtmr2, &simulated.rtmr3];
    for ((key, text), register) in ["rtmr0", "rtmr1", "rtmr2", "rtmr3"]
        .into_iter()
        .zip(texts)
        .zip(&mut values.rtmr)
    {
        set_register(key, text.as_deref(), register)?;
    }
    set_register("attributes", simulated.attributes.as_deref(), &mut values.attributes)?;
    let td = SimulatedTd::new(&authority, values).map_err(|error| fail(Exit::Failed, error))?;
    Ok(td.with_latency_ms(simulated.quote_latency_ms))
}

fn set_register<const N: usize>(key: &str, text: Option<&str>, register: &mut [u8; N]) -> Result<(), miette::Report> {
    let Some(text) = text else { return Ok(()) };
    let bad = || {
        failed(
            Exit::Usage,
            format!("[simulated] {key}: {N} bytes in hexadecimal are wanted"),
            None,
        )
    };
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad());
    }
    for (at, byte) in register.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
    }
    Ok(())
}
