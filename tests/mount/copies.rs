//! Copying datasets in, and reading them again.

use crate::dataset::{self, full};
use crate::http::assert_same;
use crate::mounted::{TestMount, local_tree, run};
use crate::proxy::Proxy;
use crate::server;

#[test]
fn a_copied_dataset_is_committed_byte_for_byte() {
    let test = TestMount::new();
    let source = test.beside("source");
    dataset::write(&source, if full() { 2000 } else { 300 });
    if full() {
        std::fs::write(source.join("200 MB"), dataset::noise(200, 200_000_000)).unwrap();
    }
    run("cp", [source.join(".").as_os_str(), "-r".as_ref(), test.dir.as_os_str()]);
    test.unmount_commit();
    assert_same(&test.committed(), &local_tree(&source));
}

#[test]
fn a_second_copy_of_a_dataset_costs_almost_nothing_on_the_wire() {
    let proxy = Proxy::new(server::url());
    let test = TestMount::through(&proxy.url());
    let source = test.beside("source");
    let mut bytes = 0;
    for at in 0..40 {
        let content = dataset::noise(at, 65_536 + 20_000 * at as usize);
        bytes += content.len() as u64;
        std::fs::write(source.join(format!("image {at}")), content).unwrap();
    }
    run("cp", ["-r".as_ref(), source.as_os_str(), test.at("first").as_os_str()]);
    test.sync();
    assert!(proxy.sent() >= bytes, "the first copy must be sent, or the proxy does not count");

    let before = proxy.total();
    run("cp", ["-r".as_ref(), source.as_os_str(), test.at("second").as_os_str()]);
    test.sync();
    let cost = proxy.total() - before;
    assert!(cost * 200 < bytes, "{cost} bytes on the wire for {bytes} that the server had");

    test.unmount_commit();
    let once = local_tree(&source);
    let twice = ["first", "second"]
        .iter()
        .flat_map(|dir| once.iter().map(move |(name, content)| (format!("{dir}/{name}"), content.clone())));
    assert_same(&test.committed(), &twice.collect());

    // The copy of a third mount costs as little: the bytes are in history now.
    test.mount(&[]).ok();
    let before = proxy.total();
    run("cp", ["-r".as_ref(), source.as_os_str(), test.at("third").as_os_str()]);
    test.sync();
    let cost = proxy.total() - before;
    assert!(cost * 200 < bytes, "{cost} bytes on the wire for {bytes} that the branch had");
    test.unmount_commit();
    assert_eq!(test.committed().len(), 120);
}

#[test]
fn a_large_file_goes_in_parts_and_little_memory() {
    let test = TestMount::new();
    let megabytes = if full() { 1024 } else { 64 };
    let chunk = dataset::noise(1, 1 << 20);
    let mut content = Vec::with_capacity(megabytes << 20);
    for at in 0..megabytes {
        content.extend_from_slice(&chunk[..(1 << 20) - 8]);
        content.extend_from_slice(&(at as u64).to_le_bytes());
    }
    std::fs::write(test.at("large"), &content).unwrap();
    test.sync();
    let status = std::fs::read_to_string(format!("/proc/{}/status", test.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 150 << 10, "the daemon took {peak} kB");
    test.unmount_commit();
    assert!(test.committed_file("large").unwrap() == content);
}

#[test]
fn another_machine_reads_what_was_committed() {
    let test = TestMount::new();
    let source = test.beside("source");
    dataset::write(&source, 120);
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    run("cp", [source.join(".").as_os_str(), "-r".as_ref(), test.dir.as_os_str()]);
    test.unmount_commit();

    let (state, dir) = (test.beside("other-state"), test.beside("other-mnt"));
    test.mount_with(&state, &dir, &[]).ok();
    assert_same(&local_tree(&dir), &local_tree(&source));
    let expected = run(
        "sh",
        ["-c", "cd \"$0\" && find . -type f -print0 | sort -z | xargs -0 sha256sum", source.to_str().unwrap()],
    );
    let found =
        run("sh", ["-c", "cd \"$0\" && find . -type f -print0 | sort -z | xargs -0 sha256sum", dir.to_str().unwrap()]);
    assert_eq!(found, expected);
    let after = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    for name in ["empty", "100%", "dir 猫の写真", "class1/image 00001.bin"] {
        let time = dir.join(name).metadata().unwrap().modified().unwrap();
        assert!(before < time && time < after, "{name} was changed at {time:?}");
    }
    test.oxenfs_with(&state, ["unmount", dir.to_str().unwrap()]).ok();
    test.assert_gone();
    assert_same(&test.committed(), &local_tree(&source));
}

#[test]
fn a_name_with_a_backslash_stays_local_and_is_reported() {
    let test = TestMount::new();
    std::fs::write(test.at("back\\slash"), "1").unwrap();
    std::fs::create_dir(test.at("d\\e")).unwrap();
    std::fs::write(test.at("d\\e/plain"), "2").unwrap();
    std::fs::write(test.at("other"), "3").unwrap();
    let local = test.status()["local"].to_string();
    assert!(local.contains("back") && local.contains("plain"), "{local}");
    assert_eq!(std::fs::read(test.at("d\\e/plain")).unwrap(), b"2");
    test.unmount_commit();
    assert_eq!(test.committed().into_keys().collect::<Vec<_>>(), ["other"]);
}
