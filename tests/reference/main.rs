//! Random operations on the filesystem core, without a kernel, against a plain model: after every step the whole tree
//! is compared, and after every drain the workspace. Faults, commits, crashes and remounts are operations too.

mod borrowed;
mod commits;
mod course;
mod damage;
mod disks;
mod listings;
mod loading;
mod model;
mod offline;
mod power;
mod records;
mod regressions;
mod scale;
mod sweep;
mod together;
mod workload;
mod world;

use oxenfs::workspace::memory::Fault;
use proptest::prelude::*;
use world::{Amiss, Manner, Op, Vanish, World};

#[expect(clippy::print_stderr, reason = "how much was tried; shown with --nocapture")]
fn tell(what: &str) {
    eprintln!("{what}");
}

fn name() -> impl Strategy<Value = String> {
    // Few names, so that operations meet; `dir` and `base` exist in the base.
    prop_oneof!["[abc]", Just("dir".to_owned()), Just("base".to_owned()), Just("t\u{fc} %#?&\"'".to_owned())]
}

fn path() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![30 => proptest::collection::vec(name(), 1..4), 1 => Just(patterns_path())]
}

fn patterns_path() -> Vec<String> {
    vec![model::PATTERNS.to_owned()]
}

/// What keeps files here: its lines match some of the names above.
fn patterns() -> impl Strategy<Value = Op> {
    let line = prop_oneof!["[abc]", "!?dir/?", "/?base", Just("*".to_owned()), "![ab]", "dir/[ab]", "/dir/"];
    let lines = proptest::collection::vec(line.prop_map(|line| line + "\n"), 0..4);
    let text = lines.prop_map(|lines| Op::Replace { path: patterns_path(), text: lines.concat() });
    prop_oneof![
        4 => text,
        1 => Just(Op::Unlink(patterns_path())),
        1 => path().prop_map(|from| Op::Rename { from, to: patterns_path(), mode: 0 }),
    ]
}

/// Set-id and sticky bits among them.
fn mode() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..0o10000, Just(0o2755), Just(0o6711), Just(0o2644)]
}

fn owner() -> impl Strategy<Value = Option<u32>> {
    proptest::option::of(0u32..3)
}

fn attribute() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("user.a"), Just("user.b"), Just("trusted.a")]
}

/// What programs do to names and content, and no more.
fn change() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), 0u64..40, "[a-z]{0,30}").prop_map(|(path, at, text)| Op::Write { path, at, text }),
        3 => (path(), "[a-c]{0,3}").prop_map(|(path, text)| Op::Replace { path, text }),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Rmdir),
        1 => path().prop_map(Op::RemoveAll),
        6 => (path(), path(), 0u8..4).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => (path(), path()).prop_map(|(from, to)| Op::Copy { from, to }),
        2 => patterns(),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(change(), 0..6)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (path(), 0u64..40, "[a-z]{0,30}").prop_map(|(path, at, text)| Op::Write { path, at, text }),
        2 => (path(), "[a-z]{0,9}", "[a-z]{0,9}").prop_map(|(path, text, more)| Op::Stream { path, text, more }),
        4 => (path(), "[a-c]{0,3}").prop_map(|(path, text)| Op::Replace { path, text }),
        3 => (path(), "[a-z]{0,9}", any::<bool>())
            .prop_map(|(path, text, stage)| Op::Beside { path, text, stage }),
        2 => (path(), 0u64..50).prop_map(|(path, size)| Op::Truncate { path, size }),
        3 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rmdir),
        2 => path().prop_map(Op::RemoveAll),
        6 => (path(), path(), 0u8..4).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => path().prop_map(Op::Symlink),
        3 => (path(), path()).prop_map(|(from, to)| Op::Copy { from, to }),
        3 => patterns(),
        2 => (path(), 0u64..30, 1u64..30).prop_map(|(path, at, length)| Op::Punch { path, at, length }),
        2 => (path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (path(), owner(), owner()).prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        3 => (path(), attribute(), "[a-z]{0,5}", 0u8..4)
            .prop_map(|(path, name, value, mode)| Op::Setxattr { path, name, value, mode }),
        1 => (path(), attribute()).prop_map(|(path, name)| Op::Removexattr { path, name }),
        4 => Just(Op::Drain),
        2 => Just(Op::Commit),
        2 => (changes(), changes()).prop_map(|(staging, answering)| Op::CommitAmid { staging, answering }),
        1 => changes().prop_map(Op::SyncAmid),
        2 => Just(Op::Crash),
        1 => Just(Op::Compact),
        2 => Just(Op::Evict),
        3 => (0u32..4, prop_oneof![Just(Fault::Lost), Just(Fault::AnswerLost), Just(Fault::Late)])
            .prop_map(|(after, fault)| Op::Fault { after, fault }),
        1 => (path(), proptest::option::of("[a-c]{1,3}")).prop_map(|(path, text)| Op::Foreign { path, text }),
    ]
}

/// Others take away what is staged, and commits go amiss. What somebody else staged is not here when it goes: left out.
fn unlucky_op() -> impl Strategy<Value = Op> {
    let vanish = prop_oneof![Just(Vanish::Deleted), Just(Vanish::Emptied), Just(Vanish::Pruned)];
    let amiss = prop_oneof![
        Just(Amiss::Lost),
        Just(Amiss::AnswerLost),
        Just(Amiss::Pruned),
        (path(), 1u8..3).prop_map(|(path, times)| Amiss::Drops(path, times)),
        path().prop_map(Amiss::LeavesOut),
    ];
    prop_oneof![
        8 => op().prop_filter("nobody else's", |op| !matches!(op, Op::Foreign { .. })),
        1 => vanish.prop_map(Op::Vanish),
        1 => amiss.prop_map(Op::CommitAmiss),
    ]
}

fn check(by_hash: oxenfs::workspace::ByHash, past: bool, ops: &[Op]) {
    check_in(by_hash, past, Manner::Plain, true, ops);
}

fn check_in(by_hash: oxenfs::workspace::ByHash, past: bool, manner: Manner, crashes: bool, ops: &[Op]) {
    let runtime = crate::world::runtime(1);
    runtime.block_on(async {
        let mut world = World::of(by_hash, past, manner).await;
        for op in ops {
            world.step(op).await;
        }
        world.step(&Op::Drain).await;
        if crashes {
            world.step(&Op::Crash).await;
        }
        world.step(&Op::Commit).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tree_and_workspace_follow_the_model_when_the_server_stages_by_hash(
        ops in proptest::collection::vec(op(), 1..40)
    ) {
        check(oxenfs::workspace::ByHash::Single, false, &ops);
    }

    #[test]
    fn tree_and_workspace_follow_the_model_when_programs_write_past_the_daemon(
        ops in proptest::collection::vec(op(), 1..40)
    ) {
        check(oxenfs::workspace::ByHash::Batch, true, &ops);
    }

    #[test]
    fn tree_and_workspace_follow_the_model_when_bytes_always_travel(
        ops in proptest::collection::vec(op(), 1..40)
    ) {
        check(oxenfs::workspace::ByHash::Never, false, &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        max_shrink_iters: 2000,
        failure_persistence: None,
        cases: ProptestConfig::default().cases / 4,
        ..ProptestConfig::default()
    })]

    /// What a commit is called committed for is in the branch byte for byte, and the server has its content.
    #[test]
    fn what_is_committed_is_in_the_branch_whatever_the_server_loses(
        ops in proptest::collection::vec(unlucky_op(), 1..30),
        by_hash in prop_oneof![
            Just(oxenfs::workspace::ByHash::Single),
            Just(oxenfs::workspace::ByHash::Batch),
            Just(oxenfs::workspace::ByHash::Never),
        ],
    ) {
        check_in(by_hash, false, Manner::Careful, true, &ops);
    }
}
