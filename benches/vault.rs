//! Sealing in memory beside the cipher alone, and file to file beside `cp` and fsync.
//!
//! `cargo xtask bench vault`; `CLOISTER_BENCH_LARGE=1` takes a file of 1 GiB instead of 256 MiB.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench ends where something is wrong, and prints what it measured"
)]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufReader, Write};
use std::path::Path;
use std::process::Command;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use cloister_benches::{Table, timed};
use cloister_vault::{Cipher, FileName, READ_AHEAD_BYTES, SEGMENT_BYTES, Subject, Vault, VaultKey, seal};
use criterion::{Criterion, Throughput};

const MEMORY_BYTES: usize = 64 << 20;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    in_memory(&mut criterion, &mut table);
    file_to_file(&mut criterion, &mut table);
    criterion.final_summary();
    table.print();
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at ^ (at >> 8)) as u8).collect()
}

fn in_memory(criterion: &mut Criterion, table: &mut Table) {
    let key = VaultKey::from_bytes([7; 32]);
    let raw = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes"));
    let plain = content(MEMORY_BYTES);
    let mut group = criterion.benchmark_group("vault_memory");
    group.sample_size(20).throughput(Throughput::Bytes(MEMORY_BYTES as u64));
    let sealed = || {
        let subject = Subject {
            vault: [1; 16],
            name: "model",
            version: 1,
            epoch: 0,
            salt: [2; 32],
        };
        timed(|| {
            seal(
                &key,
                &subject,
                Cipher::Bulk,
                &mut plain.as_slice(),
                &mut std::io::sink(),
            )
            .expect("it is sealed")
        })
    };
    let cipher = |segment: &mut [u8], at: usize| {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&(at as u64).to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let _tag = black_box(
            raw.seal_in_place_separate_tag(nonce, Aad::empty(), segment)
                .expect("it is sealed"),
        );
    };
    let mut buffer = plain.clone();
    let through_memory = || {
        timed(|| {
            buffer
                .chunks_mut(SEGMENT_BYTES)
                .enumerate()
                .for_each(|(at, segment)| cipher(segment, at))
        })
    };
    table.side_by_side(
        &mut group,
        "64 MiB in memory / AES-256-GCM in place",
        "<= 1.25",
        sealed,
        through_memory,
    );
    let mut segment = vec![0; SEGMENT_BYTES];
    let in_cache = || timed(|| (0..MEMORY_BYTES / SEGMENT_BYTES).for_each(|at| cipher(&mut segment, at)));
    table.side_by_side(
        &mut group,
        "64 MiB in memory / AES-256-GCM on one segment in cache",
        "<= 1.25",
        sealed,
        in_cache,
    );
    group.finish();
}

fn file_to_file(criterion: &mut Criterion, table: &mut Table) {
    let mib = if std::env::var_os("CLOISTER_BENCH_LARGE").is_some() {
        1024
    } else {
        256
    };
    // On the disk of the build, not in a /tmp that may be memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("there is a folder");
    let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
    let piece = content(1 << 20);
    let mut file = File::create(&source).expect("the disk takes a file");
    (0..mib).for_each(|_| file.write_all(&piece).expect("the disk has room"));
    file.sync_all().expect("the disk keeps it");
    let key = VaultKey::from_bytes([7; 32]);
    let mut vault = Vault::create(&folder.path().join("vault"), key, None).expect("a new vault");
    let name: FileName = "model".parse().expect("a name");
    let mut group = criterion.benchmark_group("vault_file");
    group.sample_size(10).throughput(Throughput::Bytes(mib << 20));
    // Both replace what they wrote the time before.
    let put = || {
        timed(|| {
            let file = File::open(&source).expect("the source is there");
            vault
                .put(&name, &mut BufReader::with_capacity(READ_AHEAD_BYTES, file))
                .expect("it is sealed")
        })
    };
    let cp = || timed(|| copied(&source, &copy));
    table.side_by_side(
        &mut group,
        &format!("{mib} MiB file to file / cp + fsync"),
        "<= 1.5",
        put,
        cp,
    );
    group.finish();
}

fn copied(from: &Path, to: &Path) {
    let status = Command::new("cp").args([from, to]).status().expect("cp runs");
    assert!(status.success(), "cp failed");
    File::open(to)
        .and_then(|file| file.sync_all())
        .expect("the disk keeps it");
}
