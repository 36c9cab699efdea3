//! A key broker as Trustee's: it hands a challenge out, wants a quote over it and over a key, and seals resources to that key.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

/// Where the report data stands in a quote of version 4.
const REPORT_DATA: std::ops::Range<usize> = 568..632;

/// How the broker answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// As the protocol says.
    #[default]
    Honest,
    /// It gives no session.
    NoCookie,
    /// It gives no nonce.
    NoNonce,
    /// It wants another hash over the runtime data.
    OtherHash,
    /// Its policy refuses.
    Forbidden,
    /// It seals to a key of its own choice.
    OtherKey,
    /// It says that it seals in another way.
    OtherAlgorithm,
    /// A bit of the sealed resource was changed, in that field.
    Changed(&'static str),
    /// What it sends as a resource is none.
    Html,
}

#[derive(Default)]
struct State {
    mood: Mood,
    resources: BTreeMap<String, Vec<u8>>,
    /// By session: the nonce, then the key that was attested.
    sessions: BTreeMap<String, (String, Option<Value>)>,
    attested: usize,
}

/// The broker; it ends when dropped.
pub struct Kbs {
    url: String,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Kbs {
    /// Serves these resources, by `repository/type/tag`.
    pub fn start(resources: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let resources = resources
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.to_vec()));
        let state = Arc::new(Mutex::new(State {
            resources: resources.collect(),
            ..State::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (own, ending) = (Arc::clone(&state), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                // A client that gave up has closed its end.
                let _ = answer(stream.unwrap(), &own);
            }
        });
        Self { url, state, stop }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers in another way from now on.
    pub fn mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// How many attestations it believed.
    pub fn attested(&self) -> usize {
        self.state.lock().unwrap().attested
    }
}

impl Drop for Kbs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for the next question.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (method, target) = line.split_once(' ').unwrap_or_default();
    let target = target.split(' ').next().unwrap_or_default().to_owned();
    let (mut length, mut cookie) = (0, String::new());
    loop {
        let mut head = String::new();
        if reader.read_line(&mut head)? <= 2 {
            break;
        }
        let (name, value) = head.trim_end().split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "cookie" => cookie = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut state = state.lock().unwrap();
    let (status, header, body) = match (method, target.as_str()) {
        ("POST", "/kbs/v0/auth") => challenge(&mut state, &body),
        ("POST", "/kbs/v0/attest") => attest(&mut state, &cookie, &body),
        ("GET", path) => resource(&state, &cookie, path.trim_start_matches("/kbs/v0/resource/")),
        _ => (404, String::new(), String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status} Answer\r\n{header}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn no(status: u16, problem: &str) -> (u16, String, String) {
    let kind = format!("https://github.com/confidential-containers/kbs/errors/{problem}");
    (
        status,
        String::new(),
        json!({ "type": kind, "detail": problem }).to_string(),
    )
}

fn challenge(state: &mut State, request: &Value) -> (u16, String, String) {
    if request["tee"] != "tdx" || !request["version"].is_string() {
        return no(401, "ProtocolVersion");
    }
    let session = format!("session-{}", state.sessions.len());
    let nonce = STANDARD.encode(Sha384::digest(&session));
    state
        .sessions
        .insert(format!("kbs-session-id={session}"), (nonce.clone(), None));
    let cookie = match state.mood {
        Mood::NoCookie => String::new(),
        _ => format!("Set-Cookie: kbs-session-id={session}; Path=/; HttpOnly\r\n"),
    };
    let body = match state.mood {
        Mood::NoNonce => json!({ "extra-params": "" }),
        Mood::OtherHash => json!({ "nonce": nonce, "extra-params": { "selected-hash-algorithm": "sha256" } }),
        _ => json!({ "nonce": nonce, "extra-params": { "selected-hash-algorithm": "sha384" } }),
    };
    (200, cookie, body.to_string())
}

/// Believes a quote whose report data is over the runtime data, with the session's nonce in it.
fn attest(state: &mut State, cookie: &str, attestation: &Value) -> (u16, String, String) {
    let Some((nonce, key)) = state.sessions.get_mut(cookie) else {
        return no(401, "InvalidCookie");
    };
    let runtime_data = &attestation["runtime-data"];
    let evidence = &attestation["tee-evidence"]["primary_evidence"];
    let quote = STANDARD
        .decode(evidence["quote"].as_str().unwrap_or_default())
        .unwrap_or_default();
    let mut wanted = Sha384::digest(runtime_data.to_string()).to_vec();
    wanted.resize(64, 0);
    let bound = quote.get(REPORT_DATA).is_some_and(|seen| seen == wanted);
    if runtime_data["nonce"] != *nonce || !bound || runtime_data["tee-pubkey"]["alg"] != "ECDH-ES+A256KW" {
        return no(401, "AttestationFailed");
    }
    *key = Some(runtime_data["tee-pubkey"].clone());
    state.attested += 1;
    (200, String::new(), json!({ "token": "e30.e30.e30" }).to_string())
}

fn resource(state: &State, cookie: &str, path: &str) -> (u16, String, String) {
    let Some((_, Some(key))) = state.sessions.get(cookie) else {
        return no(401, "Unauthenticated");
    };
    match (&state.mood, state.resources.get(path)) {
        (Mood::Forbidden, _) => no(403, "PolicyDeny"),
        (_, None) => no(404, "ResourceNotFound"),
        (Mood::Html, _) => (200, String::new(), "<html>Sign in to the network</html>".to_owned()),
        (mood, Some(content)) => (200, String::new(), seal(mood, key, content).to_string()),
    }
}

fn point(key: &PrivateKey) -> Vec<u8> {
    key.compute_public_key().unwrap().as_ref().to_vec()
}

/// JWE by RFC 7516 and RFC 7518: ECDH-ES+A256KW, A256GCM.
fn seal(mood: &Mood, jwk: &Value, content: &[u8]) -> Value {
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let theirs = match mood {
        Mood::OtherKey => point(&PrivateKey::generate(&ECDH_P256).unwrap()),
        _ => [&[4][..], &coordinate("x"), &coordinate("y")].concat(),
    };
    let own = PrivateKey::generate(&ECDH_P256).unwrap();
    let kek = agree(&own, UnparsedPublicKey::new(&ECDH_P256, theirs), (), |shared| {
        let mut hash = Context::new(&SHA256);
        let algorithm = b"ECDH-ES+A256KW";
        for part in [
            &1_u32.to_be_bytes()[..],
            shared,
            &(algorithm.len() as u32).to_be_bytes(),
            algorithm,
            &[0; 8],
            &256_u32.to_be_bytes(),
        ] {
            hash.update(part);
        }
        Ok(hash.finish().as_ref().to_vec())
    });
    let (cek, iv) = ([9; 32], [3; 12]);
    let mut wrapped = [0; 40];
    AesKek::new(&AES_256, &kek.unwrap())
        .unwrap()
        .wrap(&cek, &mut wrapped)
        .unwrap();
    let public = point(&own);
    let epk = json!({
        "kty": "EC", "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(&public[1..33]), "y": URL_SAFE_NO_PAD.encode(&public[33..]),
    });
    let enc = if *mood == Mood::OtherAlgorithm {
        "A128CBC-HS256"
    } else {
        "A256GCM"
    };
    let header = json!({ "alg": "ECDH-ES+A256KW", "enc": enc, "epk": epk }).to_string();
    let protected = URL_SAFE_NO_PAD.encode(header);
    let mut sealed = content.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &cek).unwrap());
    let nonce = Nonce::assume_unique_for_key(iv);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(protected.as_bytes()), &mut sealed);
    let mut jwe = json!({
        "protected": protected,
        "encrypted_key": URL_SAFE_NO_PAD.encode(wrapped),
        "iv": URL_SAFE_NO_PAD.encode(iv),
        "ciphertext": URL_SAFE_NO_PAD.encode(&sealed),
        "tag": URL_SAFE_NO_PAD.encode(tag.unwrap()),
    });
    if let Mood::Changed(field) = mood {
        let mut bytes = URL_SAFE_NO_PAD.decode(jwe[*field].as_str().unwrap()).unwrap();
        bytes[0] ^= 1;
        jwe[*field] = URL_SAFE_NO_PAD.encode(bytes).into();
    }
    jwe
}
