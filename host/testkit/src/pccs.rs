//! A server with the shape of a PCCS, which answers out of one set of collateral and fails as a test wants.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// How the server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// As the API says; lists in hexadecimal, as PCCS has them.
    #[default]
    Honest,
    /// As Intel's PCS: lists in DER.
    Der,
    /// With this status; the number, if any, as `Retry-After`.
    Status(u16, Option<u64>),
    /// With this status so often, then honestly.
    FirstStatus(u16, usize),
    /// It accepts and says nothing.
    Silent,
    /// It ends in the middle of the body.
    CutOff,
    /// A body beyond every bound, without a length.
    Endless,
    /// A head beyond every bound.
    EndlessHead,
    /// Something other than the API's JSON.
    Html,
    /// Without the headers that carry chains.
    NoChains,
}

/// The server; it ends when dropped.
pub struct Pccs {
    url: String,
    asked: Arc<AtomicUsize>,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

struct State {
    mood: Mood,
    collateral: Value,
    /// By FMSPC: TCB info of further families, or that it is not known.
    families: HashMap<String, Option<Value>>,
    refused: usize,
    targets: Vec<String>,
}

impl Pccs {
    /// Serves collateral as its file has it.
    pub fn start(collateral_json: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            mood: Mood::Honest,
            collateral: serde_json::from_str(collateral_json).unwrap(),
            families: HashMap::new(),
            refused: 0,
            targets: Vec::new(),
        }));
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (thread_state, thread_asked, thread_stop) = (Arc::clone(&state), Arc::clone(&asked), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if thread_stop.load(Ordering::SeqCst) {
                    return;
                }
                thread_asked.fetch_add(1, Ordering::SeqCst);
                let state = Arc::clone(&thread_state);
                std::thread::spawn(move || {
                    // A client that gave up has closed its end.
                    let _ = answer(stream.unwrap(), &state);
                });
            }
        });
        Self {
            url,
            asked,
            state,
            stop,
        }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many questions came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How many questions had this in their target.
    pub fn targets(&self, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.targets.iter().filter(|target| target.contains(part)).count()
    }

    /// Answers in another way from now on.
    pub fn mood(&self, mood: Mood) {
        let mut state = self.state.lock().unwrap();
        state.mood = mood;
        state.refused = 0;
    }

    /// Serves other collateral from now on.
    pub fn serve(&self, collateral_json: &str) {
        self.state.lock().unwrap().collateral = serde_json::from_str(collateral_json).unwrap();
    }

    /// Serves TCB info of a further family from now on, or says that it does not know it.
    pub fn serve_family(&self, fmspc: [u8; 6], collateral_json: Option<&str>) {
        let collateral = collateral_json.map(|json| serde_json::from_str(json).unwrap());
        let family = cloister_attestation::encoding::hex(&fmspc).to_uppercase();
        self.state.lock().unwrap().families.insert(family, collateral);
    }
}

impl Drop for Pccs {
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
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    let family = target.split_once("tcb?fmspc=").map(|(_, family)| family.to_owned());
    let (mood, collateral) = {
        let mut state = state.lock().unwrap();
        state.targets.push(target.clone());
        let mut mood = state.mood.clone();
        if let Mood::FirstStatus(status, times) = mood {
            mood = if state.refused < times {
                Mood::Status(status, Some(0))
            } else {
                Mood::Honest
            };
            state.refused += 1;
        }
        let of_family = family.and_then(|family| state.families.get(&family).cloned());
        match of_family {
            None => (mood, state.collateral.clone()),
            Some(Some(collateral)) => (mood, collateral),
            Some(None) => (Mood::Status(404, None), Value::Null),
        }
    };
    match &mood {
        Mood::Silent => {
            std::thread::sleep(Duration::from_secs(30));
            return Ok(());
        }
        Mood::Status(status, after) => {
            let after = after.map_or_else(String::new, |after| format!("Retry-After: {after}\r\n"));
            return write!(stream, "HTTP/1.1 {status} No\r\n{after}Content-Length: 0\r\n\r\n");
        }
        Mood::Endless => {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b'a'; 65_536])?;
            }
        }
        Mood::EndlessHead => {
            write!(stream, "HTTP/1.1 200 OK\r\n")?;
            loop {
                stream.write_all(b"X-Padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")?;
            }
        }
        Mood::Html => {
            let body = "<html><body>Sign in to the network</body></html>";
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        _ => {}
    }
    let text = |key: &str| collateral[key].as_str().unwrap().to_owned();
    let list = |key: &str| match mood {
        Mood::Der => cloister_attestation::encoding::from_hex_vec(&text(key)).unwrap(),
        _ => text(key).into_bytes(),
    };
    let signed = |name: &str, value: &str, signature: &str| {
        format!("{{\"{name}\":{},\"signature\":\"{}\"}}", text(value), text(signature)).into_bytes()
    };
    let (path, _) = target.split_once('?').unwrap_or((&target, ""));
    let pages = HashMap::from([
        ("/tdx/certification/v4/tcb", 0),
        ("/tdx/certification/v4/qe/identity", 1),
        ("/sgx/certification/v4/pckcrl", 2),
        ("/sgx/certification/v4/rootcacrl", 3),
    ]);
    let (body, header) = match pages.get(path) {
        Some(0) => (
            signed("tcbInfo", "tcb_info", "tcb_info_signature"),
            Some(("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain")),
        ),
        Some(1) => (
            signed("enclaveIdentity", "qe_identity", "qe_identity_signature"),
            Some(("SGX-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain")),
        ),
        Some(2) => (
            list("pck_crl"),
            Some(("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain")),
        ),
        Some(3) => (list("root_ca_crl"), None),
        _ => return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    };
    let chain = header
        .filter(|_| mood != Mood::NoChains)
        .map_or_else(String::new, |(name, key)| {
            let encoded: String = text(key).bytes().map(|byte| format!("%{byte:02X}")).collect();
            format!("{name}: {encoded}\r\n")
        });
    write!(
        stream,
        "HTTP/1.1 200 OK\r\n{chain}Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    let sent = if mood == Mood::CutOff {
        body.len() / 2
    } else {
        body.len()
    };
    stream.write_all(&body[..sent])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Waits for the other end: a reset would take what is on its way.
    let _ = reader.read(&mut [0; 1]);
    Ok(())
}
