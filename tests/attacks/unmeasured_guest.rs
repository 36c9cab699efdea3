//! **A guest of one's own under the right anchor.** The operator has machines with genuine TDs and starts what it likes in them:
//! the kernel and the initdata that the policy lists, under a command line of its own (another root file system, so an agent
//! that obeys no initdata), or the right guest with another initdata, which lets a second container start. Either way
//! something that the federation never agreed on asks for quotes, and claims the genuine host's measurement. The claims fit to the
//! last byte, and so do credential and binding; what refuses it is the register that the hardware filled: RTMR2, MRCONFIGID.

use cloister_attestation::State;
use cloister_attestation::encoding::hex;
use cloister_attestation::simulated::TdValues;
use cloister_policy::anchor::{Anchor, AnchorError, Workload};
use cloister_session::connect;
use cloister_testkit::world::{World, WorldNode, WorldOptions, dial};
use sha2::{Digest as _, Sha384};

use crate::arena::{Arena, refusal};

/// What the policy's pods may run.
fn anchor() -> Anchor {
    let image = format!("registry.example.org/cloister/node@sha256:{}", "1".repeat(64));
    let arguments = vec!["/usr/local/bin/cloister".to_owned(), "worker".to_owned()];
    Anchor::new(
        Workload::new(image, arguments, Vec::new()).unwrap(),
        String::new(),
        String::new(),
    )
    .unwrap()
}

/// A federation of pods, whose policy lists the guest register by register and shows the initdata; and their TDs.
async fn pods() -> (Arena, TdValues) {
    let td = TdValues {
        mrconfigid: anchor().mrconfigid(),
        ..TdValues::default()
    };
    let [rtmr0, rtmr1, rtmr2, _] = &td.rtmr;
    let listed = [
        ("mrtd", &td.mrtd),
        ("rtmr0", rtmr0),
        ("rtmr1", rtmr1),
        ("rtmr2", rtmr2),
        ("mrseam", &td.mrseam),
    ];
    let listed = listed.map(|(name, register)| format!("{name} = [\"{}\"]\n", hex(register)));
    let world = World::new(WorldOptions {
        attestation: listed.concat() + &anchor().to_toml("attestation.anchor"),
        ..WorldOptions::default()
    });
    let aggregator = node(&world, "aggregator", &td).local;
    let aggregator = world.serve(aggregator, None).await;
    (Arena { world, aggregator }, td)
}

/// A node in such a TD: its key, its credential, its claims and the measurement in them are what the policy wants.
fn node(world: &World, name: &str, td: &TdValues) -> WorldNode {
    world.node_with(name, State::Member, |node| node.values = td.clone())
}

/// The rule alone that refuses such a TD, at either end.
async fn refused_at_either_end(arena: &Arena, td: &TdValues, honest: &TdValues, rule: &str) {
    let worker = node(&arena.world, "worker-b", td);
    let error = arena.dial_as(&worker).await.unwrap_err();
    let failed = &refusal(&error).failed;
    assert!(
        failed.len() == 1 && failed[0].rule == rule,
        "{rule} not alone in {error}"
    );

    let forged = node(&arena.world, "aggregator", td).local;
    let forged = arena.world.serve(forged, None).await;
    let worker = node(&arena.world, "worker-a", honest).local;
    let error = connect(&worker, &dial(&forged.address)).await.unwrap_err();
    let failed = &refusal(&error).failed;
    assert!(
        failed.len() == 1 && failed[0].rule == rule,
        "{rule} not alone in {error}"
    );
}

async fn honest_run(arena: &Arena, td: &TdValues) {
    for name in ["worker-a", "worker-b"] {
        arena.dial_as(&node(&arena.world, name, td)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listed_kernel_and_initdata_under_another_command_line_are_refused() {
    let (arena, td) = pods().await;
    for what in [
        "root hash of another root file system",
        "init=/bin/sh",
        "agent.debug_console",
    ] {
        let mut other = td.clone();
        // The kernel is the same, its command line is not.
        other.rtmr[2] = Sha384::digest(what).into();
        assert_eq!((other.rtmr[1], other.mrconfigid), (td.rtmr[1], td.mrconfigid));
        refused_at_either_end(&arena, &other, &td, "attestation.rtmr2").await;
    }
    honest_run(&arena, &td).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_forged_by_a_second_container_is_refused() {
    let (arena, td) = pods().await;
    let genuine = anchor().initdata();
    // The agent of this pod starts whatever it is asked to: beside the host, or in its place, something else that takes quotes.
    let lax = genuine.replace(
        "default CreateContainerRequest := false",
        "default CreateContainerRequest := true",
    );
    assert_ne!(lax, genuine);
    assert!(
        matches!(Anchor::parse(&lax), Err(AnchorError::AgentPolicy { .. })),
        "no policy shows it"
    );
    let mut one_byte = genuine.clone().into_bytes();
    *one_byte.last_mut().unwrap() = b' ';
    for initdata in [lax.as_bytes(), &one_byte, b""] {
        let mut other = td.clone();
        other.mrconfigid = if initdata.is_empty() {
            [0; 48]
        } else {
            Sha384::digest(initdata).into()
        };
        refused_at_either_end(&arena, &other, &td, "attestation.mrconfigid").await;
    }
    honest_run(&arena, &td).await;
}
