//! What ties the host binary to hardware in Confidential Containers: the initdata of a pod, whose hash the TD reports as
//! MRCONFIGID, and in it the agent policy, which lets the guest's agent start one image with one command line and refuses
//! everything else.
//!
//! A genuine TD whose agent would also start another container proves nothing about this one: the other could ask for quotes
//! over what it likes. Agent policies are programs (Rego), and to judge a program that somebody else wrote is no check. So
//! this module writes the only agent policy that it accepts, out of a [`Workload`]; what differs from it by a byte is refused.
//!
//! Initdata is TOML of version 0.1.0 (the specification of Confidential Containers) with the files `aa.toml` (attestation
//! agent), `cdh.toml` (confidential data hub) and `policy.rego`; MRCONFIGID is SHA-384 over its bytes.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha384};

use crate::agreement::Register;

/// Initdata is not larger than this.
pub const MAX_INITDATA_BYTES: usize = 256 * 1024;
/// With each character escaped, a line of the agent policy keeps below the 1024 bytes that agents read.
const MAX_TEXT_BYTES: usize = 500;
const MAX_TEXTS: usize = 256;
const MAX_FILE_BYTES: usize = 64 * 1024;

/// The agent policy, but for the workload's line.
const AGENT_POLICY: &str = include_str!("agent_policy.rego");
/// What stands in [`AGENT_POLICY`] where the workload goes.
const PLACE: &str = "@WORKLOAD@";
/// How the workload begins there, and ends: a line for each text, because agents read no endless ones.
const BEGINNING: &str = "\nworkload := ";
const END: &str = "\n}\n";

/// Why initdata ties the host to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// A part of a workload can't be what it is said to be.
    #[error("the workload's {part} {problem}")]
    Workload {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The text is not initdata.
    #[error("this is no initdata of version 0.1.0 with SHA-384: {0}")]
    Initdata(String),
    /// The agent policy in it is another one.
    #[error(
        "the agent policy in the initdata is not the one for its workload ({difference}): it may let other containers start, which \
         could ask for this TD's quotes; `cloister policy from-image` writes the one that is accepted"
    )]
    AgentPolicy {
        /// The first line that differs.
        difference: String,
    },
}

/// The one container that a pod's TD may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    arguments: Vec<String>,
    environment: Vec<String>,
    image: String,
}

impl Workload {
    /// An image by digest (`REPOSITORY@sha256:...`), the whole command line, and the environment as `NAME=VALUE`.
    ///
    /// # Errors
    /// [`AnchorError::Workload`] for an image without a digest, a variable that is none, no command, control characters, or
    /// too much of anything.
    pub fn new(image: String, arguments: Vec<String>, environment: Vec<String>) -> Result<Self, AnchorError> {
        let wrong = |part, problem: &str| AnchorError::Workload {
            part,
            problem: problem.to_owned(),
        };
        let digest = image.rsplit_once("@sha256:");
        let hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digest.is_some_and(|(repository, _)| repository.is_empty()) {
            return Err(wrong(
                "image",
                "has no repository before its digest, as registry.example/cloister is one",
            ));
        }
        if !digest.is_some_and(|(_, digest)| hex(digest)) {
            return Err(wrong(
                "image",
                "names no digest (REPOSITORY@sha256:64 digits): a tag may come to mean another image",
            ));
        }
        let repository = digest.map(|(repository, _)| repository).unwrap_or_default();
        if !repository
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' | b':'))
        {
            return Err(wrong(
                "image",
                "has a repository with other characters than a-z, 0-9 and ._-/:",
            ));
        }
        // Of a reference's parts, only the first may have a colon: the registry's port.
        let mut parts = repository.split('/');
        let registry = parts.next().unwrap_or_default();
        let port = registry.rsplit_once(':').map(|(_, port)| port);
        let port_fits = port.is_none_or(|port| repository.contains('/') && port.parse::<u16>().is_ok());
        let named = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !port_fits || !named(registry) || !parts.all(|part| named(part) && !part.contains(':')) {
            return Err(wrong(
                "image",
                "has no repository of the form REGISTRY[:PORT]/NAME/... : no scheme, no tag, no empty part, no . and no ..",
            ));
        }
        if arguments.is_empty() {
            return Err(wrong("command line", "is empty"));
        }
        if environment.iter().any(|variable| !variable.contains('=')) {
            return Err(wrong("environment", "holds something that is no NAME=VALUE"));
        }
        let texts = [
            ("image", std::slice::from_ref(&image)),
            ("command line", &arguments),
            ("environment", &environment),
        ];
        for (part, texts) in texts {
            if texts.len() > MAX_TEXTS || texts.iter().any(|text| text.len() > MAX_TEXT_BYTES) {
                return Err(wrong(part, "has more than 256 entries, or one of more than 500 bytes"));
            }
            if texts.iter().any(|text| text.chars().any(char::is_control)) {
                return Err(wrong(part, "holds control characters"));
            }
            // It would end the text of the agent policy inside the initdata.
            if texts.iter().any(|text| text.contains("'''")) {
                return Err(wrong(part, "holds three quotes in a row"));
            }
        }
        Ok(Self {
            arguments,
            environment,
            image,
        })
    }

    /// The image, by digest.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The whole command line.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The environment, `NAME=VALUE` each.
    pub fn environment(&self) -> &[String] {
        &self.environment
    }

    /// The agent policy (Rego) that lets this start, and nothing else.
    pub fn agent_policy(&self) -> String {
        // A list of texts in JSON is the same in Rego.
        let lines = serde_json::to_string_pretty(self).unwrap_or_default();
        AGENT_POLICY.replacen(PLACE, &lines, 1)
    }
}

/// A pod's initdata: its workload, and the configuration of the guest's services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    workload: Workload,
    attestation_agent: String,
    data_hub: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Initdata {
    version: String,
    algorithm: String,
    data: Files,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    #[serde(rename = "aa.toml")]
    attestation_agent: String,
    #[serde(rename = "cdh.toml")]
    data_hub: String,
    #[serde(rename = "policy.rego")]
    agent_policy: String,
}

impl Anchor {
    /// What a pod with this initdata may run, in words.
    pub(crate) fn in_words(&self) -> String {
        let Workload {
            arguments,
            environment,
            image,
        } = &self.workload;
        let environment = match environment.as_slice() {
            [] => "no environment".to_owned(),
            variables => format!("the environment {}", variables.join(" ")),
        };
        let mrconfigid: String = self.mrconfigid()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!(
            "MRCONFIGID {mrconfigid}...: the pod's agent starts the image {image} with the command line {arguments:?} and {environment}, \
             and no other container, command, file or console."
        )
    }

    /// Puts a workload and the texts of `aa.toml` and `cdh.toml` together.
    ///
    /// # Errors
    /// [`AnchorError::Initdata`] if one of them is no TOML, holds `'''`, or is too large.
    pub fn new(workload: Workload, attestation_agent: String, data_hub: String) -> Result<Self, AnchorError> {
        for (name, text) in [("aa.toml", &attestation_agent), ("cdh.toml", &data_hub)] {
            let problem = if text.len() > MAX_FILE_BYTES {
                Some(format!("more than {MAX_FILE_BYTES} bytes"))
            } else if text.contains("'''") || text.contains('\r') || (!text.is_empty() && !text.ends_with('\n')) {
                Some("lines that end in a line feed, and no ''', are wanted".to_owned())
            } else {
                toml::from_str::<toml::Table>(text)
                    .err()
                    .map(|error| error.message().to_owned())
            };
            if let Some(problem) = problem {
                return Err(AnchorError::Initdata(format!("{name}: {problem}")));
            }
        }
        Ok(Self {
            workload,
            attestation_agent,
            data_hub,
        })
    }

    /// Reads initdata, and takes it only if it is what [`initdata`](Self::initdata) writes for its workload.
    ///
    /// # Errors
    /// [`AnchorError`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, AnchorError> {
        let broken = |problem: &str| AnchorError::Initdata(problem.to_owned());
        if text.len() > MAX_INITDATA_BYTES {
            return Err(broken("it is too large"));
        }
        let initdata: Initdata = toml::from_str(text).map_err(|error| broken(error.message()))?;
        if (initdata.version.as_str(), initdata.algorithm.as_str()) != ("0.1.0", "sha384") {
            return Err(broken("it has another version or algorithm"));
        }
        let files = initdata.data;
        let workload: Workload = workload_of(&files.agent_policy).ok_or_else(|| AnchorError::AgentPolicy {
            difference: "it names no workload".to_owned(),
        })?;
        let workload = Workload::new(workload.image, workload.arguments, workload.environment)?;
        let wanted = workload.agent_policy();
        if files.agent_policy != wanted {
            return Err(AnchorError::AgentPolicy {
                difference: first_difference(&files.agent_policy, &wanted),
            });
        }
        let anchor = Self::new(workload, files.attestation_agent, files.data_hub)?;
        if anchor.initdata() != text {
            return Err(broken(
                "its files are right, but it is written in another way, so its hash is another",
            ));
        }
        Ok(anchor)
    }

    /// What the pod may run.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The text of `aa.toml`.
    pub fn attestation_agent(&self) -> &str {
        &self.attestation_agent
    }

    /// The text of `cdh.toml`.
    pub fn data_hub(&self) -> &str {
        &self.data_hub
    }

    /// The initdata's text.
    pub fn initdata(&self) -> String {
        format!(
            "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = '''\n{}'''\n\n\"cdh.toml\" = '''\n{}'''\n\n\
             \"policy.rego\" = '''\n{}'''\n",
            self.attestation_agent,
            self.data_hub,
            self.workload.agent_policy()
        )
    }

    /// The anchor as a table of that name: `attestation.anchor` in a policy, `anchor` in a document of reference values.
    pub fn to_toml(&self, table: &str) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let list = |texts: &[String]| {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("[{}]", texts.join(", "))
        };
        let mut out = format!(
            "[[{table}]]\nimage = {}\narguments = {}\nenvironment = {}\n",
            quoted(&self.workload.image),
            list(&self.workload.arguments),
            list(&self.workload.environment)
        );
        for (key, text) in [("aa", &self.attestation_agent), ("cdh", &self.data_hub)] {
            if !text.is_empty() {
                out.push_str(&format!("{key} = {}\n", quoted(text)));
            }
        }
        out
    }

    /// SHA-384 of the initdata: what a TD that was started with it reports as MRCONFIGID.
    pub fn mrconfigid(&self) -> Register {
        Sha384::digest(self.initdata()).into()
    }
}

/// The workload that an agent policy names, whatever else it does.
fn workload_of(agent_policy: &str) -> Option<Workload> {
    let (_, from) = agent_policy.split_once(BEGINNING)?;
    let (object, _) = from.split_once(END)?;
    serde_json::from_str(&format!("{object}\n}}")).ok()
}

fn first_difference(seen: &str, wanted: &str) -> String {
    let mut lines = seen.lines().zip(wanted.lines()).enumerate();
    match lines.find(|(_, (seen, wanted))| seen != wanted) {
        Some((at, (seen, wanted))) => {
            let cut = |line: &str| line.chars().take(120).collect::<String>();
            format!("line {}: seen {:?}, wanted {:?}", at + 1, cut(seen), cut(wanted))
        }
        None => format!("{} lines, wanted {}", seen.lines().count(), wanted.lines().count()),
    }
}
