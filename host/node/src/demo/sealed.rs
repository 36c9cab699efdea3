//! The examples in which nobody has to trust the operator: owners of data agree by signing one by one, seal rows and module on their own
//! machines, leave the keys with a manager in a TD, and nodes start with its address alone. Every step is the command that its party
//! would give; what has to be refused is tried, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use cloister_exchange::content::ContentKind;
use cloister_vault::VaultKey;
use serde_json::{Value, json};

use super::follow::{Seen, follow};
use super::plan::{NodePlan, Plan};
use super::prepare::Prepared;
use super::processes::Processes;
use super::{END, STEP, start, submit};
use crate::events::Event;
use crate::files;
use crate::process::own_binary;
use crate::ui::{Exit, Ui, fail, failed};

/// Bytes at the end of a sealed file that the operator changes.
const CHANGED: usize = 1;

/// The federation of a sealed example, step by step.
pub(super) struct Sealed<'a> {
    plan: &'a Plan,
    prepared: &'a Prepared,
    folder: &'a Path,
    /// The manager's address, once it listens.
    manager: String,
    anchor: String,
    refused: Vec<Value>,
}

/// What a command of the binary came to.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or(Value::Null)
    }
}

impl<'a> Sealed<'a> {
    pub(super) fn new(plan: &'a Plan, prepared: &'a Prepared, folder: &'a Path) -> Self {
        Self {
            plan,
            prepared,
            folder,
            manager: String::new(),
            anchor: String::new(),
            refused: Vec::new(),
        }
    }

    /// Runs it all; gives what was agreed, released, refused, trained and exported.
    pub(super) fn run(mut self, started: Instant, out: &mut Ui) -> Result<Value, miette::Report> {
        let logs = self.folder.join("logs");
        std::fs::create_dir_all(&logs).map_err(|cause| fail(Exit::Failed, cause))?;
        let mut manager = Processes::new(&logs);
        self.start_manager(&mut manager)?;
        out.note(format!(
            "1  the manager's TD listens at {}; nothing is in force",
            self.manager
        ));
        let agreed = self.agree(&mut manager, out)?;
        self.seal_and_upload()?;
        out.note("3  rows and module are sealed; the keys lie in the manager's TD, after each owner verified it");
        self.try_what_is_refused(out)?;
        let mut processes = Processes::new(&logs);
        let (aggregator, others): (Vec<_>, Vec<_>) = self.nodes().partition(|node| node.role == "aggregator");
        let hub = aggregator
            .first()
            .ok_or_else(|| failed(Exit::Usage, "the plan has no aggregator", None))?;
        let address = start(
            &hub.name,
            &["aggregator"],
            &self.node_file(hub, None, "node.toml", "")?,
            &mut processes,
        )?;
        let open: Vec<_> = self
            .prepared
            .submissions
            .iter()
            .filter(|item| !self.is_sealed(item))
            .collect();
        submit(self.plan, self.prepared, &open, &address)?;
        for worker in others {
            let file = self.node_file(worker, Some(&address), "node.toml", "")?;
            let started = processes.start(&worker.name, &["worker"], &file);
            started.map_err(|error| fail(Exit::Failed, error))?;
        }
        let seen = follow(self.plan, &mut processes, out).map_err(|error| fail(Exit::Failed, error))?;
        processes.wait(END).map_err(|error| fail(Exit::Failed, error))?;
        self.try_an_empty_vault(hub, out)?;
        let exported = self.export(hub, out)?;
        let log = self.audit()?;
        let status = self.done(
            &format!("manager status {} --keep OUT/kept.mark -o json", self.at_manager()),
            0,
        )?;
        Ok(self.summary(agreed, &log, (&seen, exported), (started, status.json()["mark"].take())))
    }

    fn summary(
        &self,
        agreed: Value,
        log: &[Value],
        (seen, exported): (&Seen, Value),
        (started, mark): (Instant, Value),
    ) -> Value {
        let of = |event: &str| -> Vec<Value> {
            let found = log.iter().filter(|line| line["event"] == event);
            found.map(|line| line["what"].clone()).collect()
        };
        json!({
            "federation": self.plan.federation,
            "simulated": true,
            "agreed": agreed,
            "released": { "credentials": of("credential-released"), "keys": of("released") },
            "refused": self.refused,
            "trained": {
                "rounds": seen.rounds,
                "test_accuracy": seen.accuracy,
                "final_loss": seen.loss,
                "model": seen.model,
            },
            "exported": exported,
            "audit_lines": log.len(),
            "mark": mark,
            "wall_s": started.elapsed().as_secs_f64(),
        })
    }

    fn nodes(&self) -> impl Iterator<Item = &'a NodePlan> + use<'a> {
        self.plan.nodes.iter().filter(|node| node.has_rows())
    }

    fn is_sealed(&self, item: &super::work::Submission) -> bool {
        item.kind == ContentKind::Module && item.name == self.plan.training.trainer
    }

    /// Runs the binary on a line of words in which `OUT` stands for the folder.
    fn command(&self, line: &str) -> Result<Ran, miette::Report> {
        let out = self.folder.display().to_string();
        let words = line.split_whitespace().map(|word| word.replace("OUT", &out));
        let done = Command::new(own_binary()).args(words).stdin(Stdio::null()).output();
        let done = done.map_err(|cause| fail(Exit::Failed, cause))?;
        Ok(Ran {
            code: done.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// As [`Self::command`], of one that has to end with that code.
    fn done(&self, line: &str, code: i32) -> Result<Ran, miette::Report> {
        let ran = self.command(line)?;
        if ran.code == code {
            return Ok(ran);
        }
        let text = format!(
            "`cloister {line}` ended with {}, wanted {code}:\n{}{}",
            ran.code, ran.stdout, ran.stderr
        );
        Err(failed(Exit::Failed, text, None))
    }

    /// Where the manager is, for a participant.
    fn as_participant(&self, participant: &str) -> String {
        format!(
            "{} --participant {participant} --participant-key OUT/participants/{participant}.key",
            self.at_manager()
        )
    }

    fn at_manager(&self) -> String {
        format!(
            "--to {} --policy OUT/policy.toml --trust-root OUT/authority",
            self.manager
        )
    }

    fn start_manager(&mut self, processes: &mut Processes) -> Result<(), miette::Report> {
        let recipients = self.folder.join("recipients");
        std::fs::create_dir_all(&recipients).map_err(|cause| fail(Exit::Failed, cause))?;
        for name in &self.plan.participants {
            self.done(
                &format!(
                    "manager recipient --federation {} --participant {name} --participant-key OUT/participants/{name}.key \
                     --out OUT/recipients/{name}.recipient",
                    self.plan.federation
                ),
                0,
            )?;
        }
        // Unsigned until now: the founders sign one by one.
        let signatures = files::with_suffix(&self.prepared.policy, ".sigs");
        std::fs::remove_file(&signatures).map_err(|cause| fail(Exit::Failed, cause))?;
        let status = self.done("policy status OUT/policy.toml -o json", 4)?.json();
        self.anchor = status["anchor"].as_str().unwrap_or_default().to_owned();
        let managers: Vec<_> = self.plan.nodes.iter().filter(|node| node.role == "manager").collect();
        // One takes any port; several have to know each other's before they start.
        let ports = if managers.len() > 1 {
            free_ports(managers.len())?
        } else {
            vec![0]
        };
        let mut addresses = Vec::new();
        for (node, port) in managers.iter().zip(&ports) {
            let peers: Vec<_> = ports
                .iter()
                .filter(|peer| *peer != port)
                .map(|peer| format!("\"127.0.0.1:{peer}\""))
                .collect();
            let replicas = match peers.is_empty() {
                true => String::new(),
                false => format!(
                    "[store.replicas]\naddress = \"127.0.0.1:{port}\"\npeers = [{}]\n\n",
                    peers.join(", ")
                ),
            };
            let text = format!(
                "name = \"{}\"\npolicy = \"../../policy.toml\"\ncredential = \"node.credential\"\nnode_key = \"node.key\"\n\
                 listen = \"127.0.0.1:{port}\"\nprovider = \"simulated\"\n\n[store]\npath = \"state\"\nanchor = \"{}\"\n\
                 recipients = \"../../recipients\"\n\n{replicas}[simulated]\nauthority = \"../../authority\"\n",
                node.name, self.anchor
            );
            let file = self.prepared.nodes.join(&node.name).join("node.toml");
            files::write(&file, text.as_bytes())?;
            addresses.push(start(&node.name, &["manager"], &file, processes)?);
        }
        self.manager = addresses.join(",");
        let since = Instant::now();
        while managers.len() > 1 {
            let status = self.command(&format!("manager status {} -o json", self.at_manager()))?;
            if status.json()["phase"] == "running" {
                break;
            }
            if since.elapsed() > STEP {
                let text = format!("the managers did not begin: {}{}", status.stdout, status.stderr);
                return Err(failed(Exit::Failed, text, None));
            }
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        Ok(())
    }

    /// Each participant verifies the manager, signs, and brings its signature; the last one puts the policy in force.
    fn agree(&self, manager: &mut Processes, out: &mut Ui) -> Result<Value, miette::Report> {
        let mut steps = Vec::new();
        let count = self.plan.participants.len();
        for (index, name) in self.plan.participants.iter().enumerate() {
            self.done(
                &format!("policy sign OUT/policy.toml --key OUT/participants/{name}.key --participant {name}"),
                0,
            )?;
            let last = index + 1 == count;
            let publish = format!("policy publish OUT/policy.toml {} -o json", self.at_manager());
            let told = self.done(&publish, if last { 0 } else { 4 })?.json();
            out.note(match last {
                true => "2  the last signature is there: the policy is in force".to_owned(),
                false => format!("   {name} signed; missing: {}", told["missing"]),
            });
            steps.push(json!({ "signed_by": name, "missing": told["missing"], "standing": told["standing"] }));
        }
        loop {
            let next = manager.next("the policy in force", STEP);
            if let (_, Event::InForce { policy, version }) = next.map_err(|error| fail(Exit::Failed, error))? {
                return Ok(json!({ "policy": policy, "version": version, "anchor": self.anchor, "signatures": steps }));
            }
        }
    }

    /// What each participant does on its own machine, and what it ships.
    fn seal_and_upload(&self) -> Result<(), miette::Report> {
        let trainer = &self.plan.training.trainer;
        let module = self.prepared.submissions.iter().find(|item| self.is_sealed(item));
        let module = module.ok_or_else(|| failed(Exit::Usage, "the plan has no trainer", None))?;
        let owner = self.plan.nodes.iter().find(|node| node.role == "aggregator");
        let owner = owner.map(|node| node.participant.as_str()).unwrap_or_default();
        self.done(
            &format!(
                "seal module {} --out OUT/{trainer}.wasm.sealed --key-out OUT/participants/{trainer}.module.key",
                module.path.display()
            ),
            0,
        )?;
        self.put(
            owner,
            &format!(
                "module-key --from OUT/participants/{trainer}.module.key --module {trainer} --sealed OUT/{trainer}.wasm.sealed"
            ),
        )?;
        for node in self.nodes() {
            let NodePlan {
                name,
                participant,
                dataset,
                ..
            } = node;
            self.done(
                &format!("seal data OUT/nodes/{name}/data.csv --out OUT/nodes/{name}/data.csv.sealed --key-out OUT/participants/{name}.data.key"),
                0,
            )?;
            self.put(
                participant,
                &format!(
                    "{name}.data --from OUT/participants/{name}.data.key --data {name}/{dataset} --sealed OUT/nodes/{name}/data.csv.sealed"
                ),
            )?;
            self.put(
                participant,
                &format!("{name}.salt --from OUT/nodes/{name}/data.csv.salt"),
            )?;
            self.put_credential(name, participant)?;
            // What the operator's machine holds from here on is sealed.
            let own = self.prepared.nodes.join(name);
            for open in ["data.csv", "data.csv.salt"] {
                std::fs::remove_file(own.join(open)).map_err(|cause| fail(Exit::Failed, cause))?;
            }
            let content = own.join("content");
            std::fs::create_dir_all(&content).map_err(|cause| fail(Exit::Failed, cause))?;
            let shipped = format!("{trainer}.wasm.sealed");
            std::fs::copy(self.folder.join(&shipped), content.join(&shipped))
                .map_err(|cause| fail(Exit::Failed, cause))?;
        }
        for NodePlan { name, participant, .. } in self.plan.nodes.iter().filter(|node| node.role == "server") {
            self.put_credential(name, participant)?;
        }
        let hub = self
            .plan
            .aggregator()
            .map(|node| node.name.as_str())
            .unwrap_or_default();
        let key = VaultKey::generate().and_then(|key| key.save(&self.folder.join("participants/vault.key")));
        key.map_err(|error| fail(Exit::Failed, error))?;
        self.put(
            owner,
            &format!("vault-key --from OUT/participants/vault.key --vault {hub}"),
        )
    }

    /// Leaves a node's key and credential at the manager, and nowhere else.
    fn put_credential(&self, node: &str, participant: &str) -> Result<(), miette::Report> {
        let secret = format!(
            "{node}.node --from OUT/nodes/{node}/node.key --credential {node} --credential-file OUT/nodes/{node}/node.credential"
        );
        self.put(participant, &secret)?;
        for open in ["node.key", "node.credential"] {
            let path = self.prepared.nodes.join(node).join(open);
            std::fs::remove_file(path).map_err(|cause| fail(Exit::Failed, cause))?;
        }
        Ok(())
    }

    fn put(&self, participant: &str, what: &str) -> Result<(), miette::Report> {
        let line = format!("manager secrets put {what} {}", self.as_participant(participant));
        self.done(&line, 0).map(|_| ())
    }

    /// Attempts of an operator, and of a participant, before anything runs.
    fn try_what_is_refused(&mut self, out: &mut Ui) -> Result<(), miette::Report> {
        let workers: Vec<_> = self.nodes().filter(|node| node.role == "worker").collect();
        let [first, second, ..] = workers.as_slice() else {
            return Err(failed(Exit::Usage, "a sealed example wants two workers", None));
        };
        let mrtd = format!("mrtd = \"{}\"\n", "66".repeat(48));
        let file = self.node_file(first, Some("127.0.0.1:9"), "other-td.toml", &mrtd)?;
        self.refusal(
            "a TD that booted something else asks for a node's credential",
            &start_line("worker", &file),
            out,
        )?;

        let own = self.prepared.nodes.join(&second.name);
        let (sealed, kept) = (own.join("data.csv.sealed"), own.join("data.csv.kept"));
        std::fs::copy(&sealed, &kept).map_err(|cause| fail(Exit::Failed, cause))?;
        let mut bytes = std::fs::read(&sealed).map_err(|cause| fail(Exit::Failed, cause))?;
        bytes.iter_mut().rev().take(CHANGED).for_each(|byte| *byte ^= 1);
        std::fs::write(&sealed, bytes).map_err(|cause| fail(Exit::Failed, cause))?;
        let file = self.node_file(second, Some("127.0.0.1:9"), "changed.toml", "")?;
        self.refusal(
            "the operator changed a participant's sealed rows",
            &start_line("worker", &file),
            out,
        )?;
        std::fs::rename(&kept, &sealed).map_err(|cause| fail(Exit::Failed, cause))?;

        let theft = format!(
            "manager secrets put theft --from OUT/participants/{name}.data.key --data {name}/{data} --sealed OUT/nodes/{name}/data.csv.sealed {}",
            self.as_participant(&second.participant),
            name = first.name,
            data = first.dataset,
        );
        self.refusal("a participant puts a key for another's rows", &theft, out)
    }

    /// After the last round: an operator who takes the vault away gets no new one under its name.
    fn try_an_empty_vault(&mut self, hub: &NodePlan, out: &mut Ui) -> Result<(), miette::Report> {
        let own = self.prepared.nodes.join(&hub.name);
        std::fs::rename(own.join("vault"), own.join("vault.kept")).map_err(|cause| fail(Exit::Failed, cause))?;
        let file = self.node_file(hub, None, "no-vault.toml", "")?;
        self.refusal(
            "the operator took the aggregator's vault away",
            &start_line("aggregator", &file),
            out,
        )?;
        // Nothing of a new one may be left.
        let _ = std::fs::remove_dir_all(own.join("vault"));
        std::fs::rename(own.join("vault.kept"), own.join("vault")).map_err(|cause| fail(Exit::Failed, cause))
    }

    fn refusal(&mut self, what: &str, line: &str, out: &mut Ui) -> Result<(), miette::Report> {
        let ran = self.command(line)?;
        if ran.code == 0 {
            return Err(failed(
                Exit::Failed,
                format!("not refused: {what}\n{}{}", ran.stdout, ran.stderr),
                None,
            ));
        }
        let text = ran.stderr.replace('│', " ");
        let words: Vec<_> = text
            .lines()
            .filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ") && !line.starts_with("SIMULATED: "))
            .collect();
        let reason = words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        out.note(format!("   refused ({}): {what}", ran.code));
        self.refused
            .push(json!({ "what": what, "exit": ran.code, "reason": reason }));
        Ok(())
    }

    /// A node file with the manager's address, the anchor, and no secret.
    fn node_file(
        &self,
        node: &NodePlan,
        aggregator: Option<&str>,
        name: &str,
        simulated: &str,
    ) -> Result<PathBuf, miette::Report> {
        let reach = match aggregator {
            Some(address) => format!("aggregator = \"{address}\"\n"),
            None => "listen = \"127.0.0.1:0\"\n".to_owned(),
        };
        let vault = if aggregator.is_none() {
            "[vault]\npath = \"vault\"\n\n"
        } else {
            ""
        };
        let text = format!(
            "name = \"{node}\"\n{reach}provider = \"simulated\"\naudit = \"audit.jsonl\"\n\n[manager]\naddress = \"{manager}\"\n\
             anchor = \"{anchor}\"\n\n[data.{dataset}]\npath = \"data.csv.sealed\"\nsalt = \"secret://{participant}/{node}.salt\"\n\n\
             [content]\ndir = \"content\"\n\n{vault}[simulated]\nauthority = \"../../authority\"\n{simulated}",
            node = node.name,
            participant = node.participant,
            dataset = node.dataset,
            manager = self.manager,
            anchor = self.anchor,
        );
        let path = self.prepared.nodes.join(&node.name).join(name);
        files::write(&path, text.as_bytes())?;
        Ok(path)
    }

    /// The model leaves the aggregator's TD for whom the policy names: another TD, attested first, and a participant's key.
    fn export(&mut self, hub: &NodePlan, out: &mut Ui) -> Result<Value, miette::Report> {
        let config = format!("vault export --config OUT/nodes/{}/node.toml", hub.name);
        let stranger = self.plan.workers().next().map(|node| node.participant.clone());
        let stranger = stranger.unwrap_or_default();
        self.refusal(
            "a participant that the policy does not name asks for the model",
            &format!(
                "{config} --to {stranger} --recipient OUT/recipients/{stranger}.recipient --out OUT/stolen.export"
            ),
            out,
        )?;
        let owner = &hub.participant;
        self.done(
            &format!("{config} --to {owner} --recipient OUT/recipients/{owner}.recipient --out OUT/model.export"),
            0,
        )?;
        self.done(
            &format!(
                "unseal OUT/model.export --policy OUT/policy.toml --participant {owner} \
                 --participant-key OUT/participants/{owner}.key --out OUT/released"
            ),
            0,
        )?;
        let reader = self.plan.nodes.iter().find(|node| node.role == "server");
        let received = reader.map(|reader| self.export_to_td(reader, &config)).transpose()?;
        let released = self.folder.join("released");
        let mut found = BTreeMap::new();
        for name in ["model.safetensors", "model.onnx"] {
            let path = released.join(name);
            let digest = files::digest_of(&path)?;
            if reader.is_some() && files::digest_of(&self.folder.join("received").join(name))? != digest {
                return Err(failed(
                    Exit::Failed,
                    format!("{name} differs between the two exports"),
                    None,
                ));
            }
            found.insert(name, json!({ "path": path, "sha256": digest }));
        }
        let td = reader.map(|reader| reader.name.as_str());
        out.note(match td {
            Some(td) => format!("6  the model went to the TD {td} and to {owner}'s key, and opened there"),
            None => format!("6  the model went to {owner}'s key, and opened there"),
        });
        Ok(json!({ "to": owner, "td": td, "model": received, "files": found }))
    }

    /// A TD that starts with the manager's address alone waits for the model, is attested, and opens it.
    fn export_to_td(&self, reader: &NodePlan, config: &str) -> Result<String, miette::Report> {
        let text = format!(
            "name = \"{}\"\nlisten = \"127.0.0.1:0\"\nprovider = \"simulated\"\naudit = \"audit.jsonl\"\n\n[manager]\n\
             address = \"{}\"\nanchor = \"{}\"\n\n[content]\ndir = \"content\"\n\n[simulated]\nauthority = \"../../authority\"\n",
            reader.name, self.manager, self.anchor
        );
        let file = self.prepared.nodes.join(&reader.name).join("node.toml");
        files::write(&file, text.as_bytes())?;
        let mut processes = Processes::new(&self.folder.join("logs"));
        let into = self.folder.join("received").display().to_string();
        let address = start(
            &reader.name,
            &["vault", "receive", "--out", &into],
            &file,
            &mut processes,
        )?;
        self.done(&format!("{config} --to {address}"), 0)?;
        let told = processes.next("the model at the reader's TD", STEP);
        match told.map_err(|error| fail(Exit::Failed, error))? {
            (_, Event::Received { model, .. }) => {
                processes.wait(END).map_err(|error| fail(Exit::Failed, error))?;
                Ok(model)
            }
            (_, other) => Err(failed(Exit::Failed, format!("the reader's TD told {other:?}"), None)),
        }
    }

    /// The manager's log, verified; its entries.
    fn audit(&self) -> Result<Vec<Value>, miette::Report> {
        let reader = self.plan.participants.first().map(String::as_str).unwrap_or_default();
        self.done(
            &format!("manager log {} --out OUT/manager.jsonl", self.as_participant(reader)),
            0,
        )?;
        // The log goes by the name of the manager that made the store, and the one that led last signed its end.
        let managers = self.plan.nodes.iter().filter(|node| node.role == "manager");
        let managers: Vec<_> = managers.map(|node| node.name.as_str()).collect();
        let maker = managers.iter().min().copied().unwrap_or_default();
        let show = |signer: &str| {
            let line = format!(
                "audit show OUT/manager.jsonl --credential OUT/nodes/{signer}/node.credential --log-of {maker} \
                 --policy OUT/policy.toml -o json"
            );
            self.done(&line, 0)
        };
        let shown = managers.iter().map(|signer| show(signer));
        let shown = shown.reduce(Result::or).unwrap_or_else(|| show(maker))?;
        let one = |line: &str| serde_json::from_str(line).ok();
        match serde_json::from_str::<Value>(&shown.stdout) {
            Ok(Value::Array(entries)) => Ok(entries),
            Ok(entry) => Ok(vec![entry]),
            Err(_) => Ok(shown.stdout.lines().filter_map(one).collect()),
        }
    }
}

/// Ports of this machine that nobody listens at now.
fn free_ports(count: usize) -> Result<Vec<u16>, miette::Report> {
    let listeners = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0"));
    // All are held before any is let go of, so that none comes twice.
    let listeners: std::io::Result<Vec<_>> = listeners.collect();
    let listeners = listeners.map_err(|cause| fail(Exit::Failed, cause))?;
    let ports: std::io::Result<Vec<_>> = listeners
        .iter()
        .map(|listener| listener.local_addr().map(|at| at.port()))
        .collect();
    ports.map_err(|cause| fail(Exit::Failed, cause))
}

fn start_line(role: &str, file: &Path) -> String {
    format!("{role} --config {}", file.display())
}
