//! A node's credential, as a file or as a peer shows it.
#![no_main]

use cloister_attestation::identity::{Credential, Role, SigningKey};
use cloister_fuzz::{NOW, WORLD, plant};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    vec![WORLD.node("worker-a", Role::Worker).1.credential.to_vec()]
}

fuzz_target!(init: plant("credential", seeds()), |data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let _ = SigningKey::from_pem(text);
    let Ok(credential) = Credential::parse(text) else { return };
    let again = Credential::parse(&credential.to_text()).expect("what was read can be written and read");
    assert_eq!(again.fields, credential.fields);
    let stranger = SigningKey::from_pem(&SigningKey::generate().unwrap().to_pem()).unwrap().public();
    assert!(!credential.verify(&stranger, NOW).is_empty(), "signed by a key that was made just now");
});
