//! Salts and keys of datasets from an external key service (`[kbs]`): what is fetched is verified by the commitment that the policy has.

use cloister_session::Proxy;
use cloister_session::collateral::Source;
use cloister_session::kbs::{Kbs, KbsError, Resource};
use zeroize::Zeroizing;

use super::config::{NodeConfig, Place};
use super::ground::Ground;
use super::provisions::Provisions;
use crate::ui::{Exit, fail, failed, unreadable};

/// Fetches what the node file names, in one exchange, and puts it where it is used.
pub(super) fn fetch(config: &NodeConfig, ground: &Ground, provisions: &mut Provisions) -> Result<(), miette::Report> {
    let Some(place) = &config.kbs else { return Ok(()) };
    let (mut names, mut keys) = (Vec::new(), Vec::new());
    for (dataset, data) in &config.data {
        if let Some(Place::Kbs(name)) = &data.salt {
            names.push(name.clone());
        }
        if let Some(Place::Kbs(name)) = &data.key {
            names.push(name.clone());
            keys.push((dataset, &data.path, name.clone()));
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    // Open until the service was asked.
    let (_opened, authorities) = match &place.authorities {
        Some(Place::Secret(name)) => provisions
            .value_as_file(name)
            .map(|(file, path)| (Some(file), Some(path)))?,
        Some(Place::File(path)) => (None, Some(path.clone())),
        Some(Place::Kbs(_)) | None => (None, None),
    };
    let source = Source {
        url: place.url.clone(),
        authorities,
        proxy: config
            .proxy
            .as_deref()
            .map(str::parse::<Proxy>)
            .transpose()
            .map_err(unreadable)?,
    };
    let wanted: Result<Vec<Resource>, KbsError> = names.iter().map(|name| name.parse()).collect();
    let wanted = wanted.map_err(unreadable)?;
    let quote = |report_data: &[u8; 64]| {
        let quote = ground.provider.quote(report_data).map_err(|error| error.to_string())?;
        Ok((quote, bytes::Bytes::new()))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| fail(Exit::Failed, error))?;
    let fetched = runtime.block_on(async { Kbs::new(&source)?.fetch(quote, &wanted).await });
    let fetched = fetched.map_err(|error| fail(Exit::Failed, error))?;
    for (name, value) in names.iter().zip(fetched) {
        let text = String::from_utf8(value.to_vec()).map(Zeroizing::new);
        let text = text.map_err(|_| failed(Exit::Failed, format!("{name} is no text"), None))?;
        provisions.values.insert(name.clone(), text);
    }
    for (dataset, path, name) in keys {
        provisions.opens_dataset(dataset, path, &name)?;
    }
    tracing::info!("the key service released {}", names.join(", "));
    Ok(())
}
