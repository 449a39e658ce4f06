use std::path::Path;

use super::*;

/// A user whose Oxen configuration is in `dir`.
fn environment(dir: &Path) -> Environment {
    Environment {
        oxen_config_dir: Some(dir.to_owned()),
        home: Some("/home/ann".into()),
        uid: 1000,
        gid: 1000,
        user: "ann".into(),
        host: "lab7".into(),
        ..Environment::default()
    }
}

fn nowhere() -> Environment {
    environment(Path::new("/nonexistent"))
}

fn input(repo: &str, server: Option<&str>) -> MountInput {
    MountInput {
        repo: repo.into(),
        mountpoint: "/mnt/cats".into(),
        server: server.map(str::to_owned),
        ..MountInput::default()
    }
}

fn settings(input: MountInput) -> Result<MountSettings, ConfigError> {
    MountSettings::new(input, &nowhere())
}

fn server(text: &str) -> Result<String, ConfigError> {
    ServerUrl::parse("--server", text).map(|server| server.to_string())
}

#[test]
fn servers_are_read_as_people_write_them() {
    let cases = [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000"),
        ("localhost:3000", "http://localhost:3000"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("hub.oxen.ai", "https://hub.oxen.ai"),
        ("HUB.oxen.ai:443", "https://hub.oxen.ai"),
        ("http://gpu-7:80", "http://gpu-7"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    ];
    for (text, expected) in cases {
        assert_eq!(server(text).unwrap(), expected, "{text}");
    }
    for bad in [
        "",
        "http://",
        "ftp://h",
        "http://h:0",
        "http://h:99999",
        "http://h:x",
        "http://h/path",
        "http://h?q",
        "h h",
        "[::1",
        "http://[::1]x",
        "http://-h",
    ] {
        assert!(matches!(server(bad), Err(ConfigError::Invalid { .. })), "{bad}");
    }
}

#[test]
fn credentials_in_a_url_are_refused_and_not_repeated() {
    for (repo, named) in [
        ("http://sesame@h/ox/cats", None),
        ("sesame@h/ox/cats", None),
        ("ftp://u:sesame@h/ox/cats", None),
        ("oxen://sesame@h/ox/cats", None),
        ("ox/cats", Some("https://u:sesame@h")),
        ("ox/cats", Some("ssh://sesame@h")),
    ] {
        let error = settings(input(repo, named)).unwrap_err();
        assert!(matches!(error, ConfigError::CredentialsInUrl(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }
}

#[test]
fn a_whole_url_names_server_and_repository() {
    let whole = settings(input("http://127.0.0.1:3000/ox/cats", None)).unwrap();
    assert_eq!(whole.server.to_string(), "http://127.0.0.1:3000");
    assert_eq!(whole.repo.to_string(), "ox/cats");
    settings(input("http://127.0.0.1:3000/ox/cats/", Some("127.0.0.1:3000"))).unwrap();
    let other = settings(input("http://127.0.0.1:3000/ox/cats", Some("127.0.0.1:3001")));
    assert!(matches!(other, Err(ConfigError::Conflict(_))), "{other:?}");
    for bad in ["cats", "ox/", "/cats", "ox/cats/x", "http://h/ox", "http://h/ox/cats/x", "ox/..", "ox/c ats", "ox/%2e"]
    {
        let refused = settings(input(bad, Some("h")));
        assert!(matches!(refused, Err(ConfigError::Invalid { what: "REPO", .. })), "{bad}");
    }
}

#[test]
fn an_oxen_url_names_repository_revision_and_directory() {
    let of = |text| settings(input(text, Some("h"))).unwrap();
    let plain = of("oxen://ox:cats");
    assert_eq!((plain.repo.to_string().as_str(), plain.branch.as_str(), plain.revision), ("ox/cats", "main", None));
    let whole = of("oxen://ox:cats@dev/images/small/");
    assert_eq!((whole.revision.as_deref(), whole.subdir.as_str()), (Some("dev"), "images/small"));
    assert!(whole.is_read_only() && whole.branch.is_empty() && whole.workspace.is_empty());
    assert_eq!(of("oxen://ox:cats/images").subdir.as_str(), "images");
    let same = MountInput {
        revision: Some("dev".into()),
        subdir: Some("x".into()),
        ..input("oxen://ox:cats@dev/x", Some("h"))
    };
    assert_eq!(settings(same).unwrap().revision.as_deref(), Some("dev"));
    type Change = fn(&mut MountInput);
    let others: [Change; 2] = [|input| input.revision = Some("main".into()), |input| input.subdir = Some("y".into())];
    for change in others {
        let mut input = input("oxen://ox:cats@dev/x", Some("h"));
        change(&mut input);
        assert!(matches!(settings(input), Err(ConfigError::Conflict(_))));
    }
    for bad in ["oxen://", "oxen://cats", "oxen://ox:", "oxen://ox:cats:x", "oxen://ox/cats", "oxen://ox:c ats/x"] {
        let refused = settings(input(bad, Some("h")));
        assert!(matches!(refused, Err(ConfigError::Invalid { what: "REPO", .. })), "{bad}");
    }
    for bad in ["oxen://ox:cats@", "oxen://ox:cats@/x", "oxen://ox@cats"] {
        let refused = settings(input(bad, Some("h")));
        assert!(matches!(refused, Err(ConfigError::CredentialsInUrl("REPO"))), "{bad}");
    }
    let refused = settings(input("oxen://ox:cats@a b", Some("h")));
    assert!(matches!(refused, Err(ConfigError::Invalid { what: "--revision", .. })), "{refused:?}");
}

#[test]
fn a_mount_that_only_reads_shows_a_revision_and_has_no_workspace() {
    let of = |change: fn(&mut MountInput)| {
        let mut input = input("ox/cats", Some("h"));
        change(&mut input);
        settings(input)
    };
    let shown = |settings: MountSettings| (settings.revision, settings.branch, settings.workspace);
    let main = of(|input| input.read_only = Some(true)).unwrap();
    assert_eq!(shown(main), (Some("main".into()), "main".into(), String::new()));
    let dev = of(|input| input.apply_options("ro,branch=dev", false).unwrap()).unwrap();
    assert_eq!(shown(dev), (Some("dev".into()), "dev".into(), String::new()));
    let commit = of(|input| input.apply_options("revision=c0ffee", false).unwrap()).unwrap();
    assert_eq!(shown(commit), (Some("c0ffee".into()), String::new(), String::new()));
    type Change = fn(&mut MountInput);
    let refused: [(&str, Change); 4] = [
        ("--create and --read-only", |input| (input.read_only, input.create) = (Some(true), true)),
        ("--write-through and --read-only", |input| (input.read_only, input.write_through) = (Some(true), Some(true))),
        ("--workspace and --read-only", |input| (input.read_only, input.workspace) = (Some(true), Some("w".into()))),
        ("--branch and --revision", |input| (input.branch, input.revision) = (Some("a".into()), Some("a".into()))),
    ];
    for (both, change) in refused {
        assert_eq!(of(change).unwrap_err().to_string(), format!("{both} exclude each other"));
    }
}

#[test]
fn the_server_is_looked_for_in_order() {
    let temp = tempfile::tempdir().unwrap();
    let mut environment = environment(temp.path());
    let found = |environment: &Environment, named| {
        MountSettings::new(input("ox/cats", named), environment).map(|settings| settings.server.to_string())
    };
    assert!(matches!(found(&environment, None), Err(ConfigError::NoServer)));
    std::fs::write(temp.path().join("auth_config.toml"), "default_host = \"hub.oxen.ai\"\nhost_configs = []\n")
        .unwrap();
    assert_eq!(found(&environment, None).unwrap(), "https://hub.oxen.ai");
    environment.server = Some("http://gpu-7:3000".into());
    assert_eq!(found(&environment, None).unwrap(), "http://gpu-7:3000");
    assert_eq!(found(&environment, Some("localhost:3001")).unwrap(), "http://localhost:3001");
}

#[test]
fn the_token_is_the_environments_else_the_stored_one_for_that_server() {
    let temp = tempfile::tempdir().unwrap();
    let mut environment = environment(temp.path());
    let file = temp.path().join("auth_config.toml");
    let token = |environment: &Environment, server: &str| {
        let server = ServerUrl::parse("--server", server).unwrap();
        let source = CredentialSource::new(environment, &server, None, None).unwrap();
        source.read().map(|secret| secret.expose().to_owned())
    };
    assert_eq!(token(&environment, "hub.oxen.ai"), None);
    let stored = "default_host = \"hub.oxen.ai\"\n\
        [[host_configs]]\nhost = \"hub.oxen.ai\"\nauth_token = \"hub\"\n\
        [[host_configs]]\nhost = \"localhost:3000\"\nauth_token = \"local\"\n\
        [[host_configs]]\nhost = \"empty\"\n";
    std::fs::write(&file, stored).unwrap();
    assert_eq!(token(&environment, "https://hub.oxen.ai").as_deref(), Some("hub"));
    assert_eq!(token(&environment, "http://localhost:3000").as_deref(), Some("local"));
    assert_eq!(token(&environment, "http://localhost:3001"), None);
    assert_eq!(token(&environment, "empty"), None);
    environment.api_key = Some(Secret::new("key"));
    assert_eq!(token(&environment, "http://localhost:3001").as_deref(), Some("key"));
}

#[test]
fn a_renewed_token_is_found_without_a_remount() {
    let temp = tempfile::tempdir().unwrap();
    let server = ServerUrl::parse("--server", "hub.oxen.ai").unwrap();
    let source = CredentialSource::new(&environment(temp.path()), &server, None, None).unwrap();
    for token in ["old", "new"] {
        let text = format!("[[host_configs]]\nhost = \"hub.oxen.ai\"\nauth_token = \"{token}\"\n");
        std::fs::write(temp.path().join("auth_config.toml"), text).unwrap();
        assert_eq!(source.read().unwrap().expose(), token);
    }
}

#[test]
fn a_broken_credentials_file_is_named_without_its_content() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("auth_config.toml");
    for text in [
        "\n[[host_configs]]\nhost = \"h\"\nauth_token = sesame\n",
        "host_configs = \"sesame\"\n",
        "[[host_configs]]\nhost = \"h\"\nauth_token = [\"sesame\"]\n",
    ] {
        std::fs::write(&file, text).unwrap();
        let error = OxenConfig::new(&environment(temp.path())).default_host().unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(said.contains("auth_config.toml") && !said.contains("sesame"), "{said}");
    }
}

#[test]
fn a_secret_is_not_printed() {
    assert_eq!(format!("{:?}", Secret::new("sesame")), "Secret(..)");
}

#[test]
fn the_author_comes_from_the_oxen_configuration() {
    let temp = tempfile::tempdir().unwrap();
    let config = OxenConfig::new(&environment(temp.path()));
    assert_eq!(config.author().unwrap(), Author::default());
    std::fs::write(temp.path().join("user_config.toml"), "name = \"Ann\"\nemail = \"\"\nother = 1\n").unwrap();
    let author = config.author().unwrap();
    assert_eq!((author.name.as_deref(), author.email), (Some("Ann"), None));
}

#[test]
fn mount_options_mean_what_the_long_options_mean() {
    let mut input = input("ox/cats", None);
    let list = "_netdev,nofail,x-systemd.automount,server=h:1,branch=dev,spool_limit=10G,cache-limit=1MiB,uid=7,\
        umask=077,allow_other,noexec,state-dir=/var/oxen,settle=0.25,drain-timeout=2m,read_timeout=5m,fsync=staged,,\
        user=ann,rw";
    input.apply_options(list, false).unwrap();
    let settings = settings(input).unwrap();
    assert!(settings.access.allow_other && settings.access.noexec);
    assert_eq!(settings.server.to_string(), "https://h:1");
    assert_eq!(settings.branch, "dev");
    assert_eq!((settings.spool_limit_bytes, settings.cache_limit_bytes), (10 << 30, 1 << 20));
    assert_eq!((settings.access.uid, settings.access.gid, settings.access.umask), (7, 1000, 0o077));
    assert_eq!(settings.state_root, Path::new("/var/oxen"));
    assert_eq!(settings.settle, Duration::from_millis(250));
    assert_eq!(settings.drain_timeout, Duration::from_secs(120));
    assert_eq!(settings.read_timeout, Some(Duration::from_secs(300)));
    assert_eq!(settings.fsync, FsyncPolicy::Staged);
}

#[test]
fn a_read_timeout_of_zero_is_none() {
    let of = |text: Option<&str>| {
        let read_timeout = text.map(str::to_owned);
        settings(MountInput { read_timeout, ..input("ox/cats", Some("h")) }).unwrap().read_timeout
    };
    assert_eq!(
        [of(None), of(Some("0")), of(Some("2s"))],
        [Some(DEFAULT_READ_TIMEOUT), None, Some(Duration::from_secs(2))]
    );
}

#[test]
fn a_mount_looks_where_its_branch_is_unless_it_is_told_otherwise() {
    let of = |text: Option<&str>| {
        let refresh = text.map(str::to_owned);
        settings(MountInput { refresh, ..input("ox/cats", Some("h")) }).map(|settings| settings.refresh)
    };
    for (text, expected) in [
        (None, Refresh::Look(DEFAULT_LOOK)),
        (Some("0"), Refresh::Never),
        (Some("5m"), Refresh::Move(Duration::from_secs(300))),
        (Some("0.25"), Refresh::Move(Duration::from_millis(250))),
        (Some("look:30"), Refresh::Look(Duration::from_secs(30))),
    ] {
        assert_eq!(of(text).unwrap(), expected, "{text:?}");
    }
    for wrong in ["look", "look:0", "look:", "often", ""] {
        assert!(matches!(of(Some(wrong)), Err(ConfigError::Invalid { what: "--refresh", .. })), "{wrong}");
    }
    // A revision stays what it is: what a file says for all mounts is passed over, and what the command says is wrong.
    let mut said = MountInput { read_only: Some(true), ..input("ox/cats", Some("h")) };
    assert_eq!(settings(said.clone()).unwrap().refresh, Refresh::Never);
    said.refresh = Some("60".into());
    assert!(matches!(settings(said), Err(ConfigError::Conflict(_))));
    let mut listed = input("ox/cats", Some("h"));
    listed.apply_options("refresh=look:10", false).unwrap();
    assert_eq!(settings(listed).unwrap().refresh, Refresh::Look(Duration::from_secs(10)));
}

#[test]
fn the_command_line_wins_over_mount_options() {
    let mut input = input("ox/cats", Some("a"));
    input.apply_options("server=b,branch=dev,branch=other", false).unwrap();
    let settings = settings(input).unwrap();
    assert_eq!(settings.server.to_string(), "https://a");
    assert_eq!(settings.branch, "dev");
}

#[test]
fn mount_options_that_mean_nothing_are_named() {
    let apply = |list: &str, lenient| input("ox/cats", None).apply_options(list, lenient);
    match apply("ro,bogus=1", false) {
        Err(ConfigError::UnknownOption(option)) => assert_eq!(option, "bogus=1"),
        other => panic!("{other:?}"),
    }
    apply("ro,bogus=1", true).unwrap();
    for bad in ["branch", "branch=", "ro=yes", "create=1"] {
        assert!(matches!(apply(bad, false), Err(ConfigError::Conflict(_))), "{bad}");
    }
}

#[test]
fn values_that_cannot_be_used_are_named() {
    type Change = fn(&mut MountInput);
    let cases: [(&str, Change); 12] = [
        ("--branch", |input| input.branch = Some("a b".into())),
        ("--branch", |input| input.branch = Some(String::new())),
        ("--workspace", |input| input.workspace = Some("a/b".into())),
        ("--subdir", |input| input.subdir = Some("a/../b".into())),
        ("--fsync", |input| input.fsync = Some("never".into())),
        ("--spool-limit", |input| input.spool_limit = Some("lots".into())),
        ("--cache-limit", |input| input.cache_limit = Some("-1".into())),
        ("--settle", |input| input.settle = Some("soon".into())),
        ("--drain-timeout", |input| input.drain_timeout = Some("-1".into())),
        ("--uid", |input| input.uid = Some("ann".into())),
        ("--umask", |input| input.umask = Some("888".into())),
        ("--storage", |input| {
            input.create = true;
            input.storage = Some("s3:".into());
        }),
    ];
    for (option, change) in cases {
        let mut input = input("ox/cats", Some("h"));
        change(&mut input);
        match settings(input) {
            Err(ConfigError::Invalid { what, .. }) => assert_eq!(what, option),
            other => panic!("{option}: {other:?}"),
        }
    }
    let mut input = input("ox/cats", Some("h"));
    input.public = true;
    assert_eq!(settings(input).unwrap_err().to_string(), "--public needs --create");
}

#[test]
fn storage_names_a_bucket_and_what_its_keys_begin_with() {
    let s3 = |bucket: &str, prefix: &str| Storage::S3 { bucket: bucket.into(), prefix: prefix.into() };
    assert_eq!("local".parse::<Storage>().unwrap(), Storage::Local);
    assert_eq!("s3:b/p/q".parse::<Storage>().unwrap(), s3("b", "p/q"));
    assert_eq!("s3:b".parse::<Storage>().unwrap(), s3("b", ""));
    assert!("s3:/p".parse::<Storage>().is_err());
    assert!("gcs:b".parse::<Storage>().is_err());
}

#[test]
fn the_default_workspace_is_the_same_for_the_same_and_differs_for_others() {
    assert_eq!(default_workspace("ann", "lab7", "main"), "oxenfs-ann-lab7-main");
    let slash = default_workspace("ann", "lab7", "feature/x");
    assert_eq!(slash, default_workspace("ann", "lab7", "feature/x"));
    assert_ne!(slash, default_workspace("ann", "lab7", "feature-x"));
    for odd in [slash, default_workspace("Ännchen", "lab 7", &"b".repeat(300))] {
        assert!(checked_workspace(&odd).is_ok(), "{odd}");
    }
}

#[test]
fn state_is_kept_in_the_users_own_place() {
    let mut environment = nowhere();
    assert_eq!(environment.state_root().unwrap(), Path::new("/home/ann/.local/state/oxenfs"));
    environment.home = None;
    assert!(matches!(environment.state_root(), Err(ConfigError::NoHome)));
    environment.uid = 0;
    assert_eq!(environment.state_root().unwrap(), Path::new("/var/lib/oxenfs"));
    environment.state_home = Some("/data/state".into());
    assert_eq!(environment.state_root().unwrap(), Path::new("/data/state/oxenfs"));
}

/// `environment` with these configuration files, the first of which counts most.
fn configured(dir: &Path, files: &[&str]) -> Environment {
    let mut environment = environment(dir);
    for (at, text) in files.iter().enumerate() {
        let path = dir.join(format!("{at}.toml"));
        std::fs::write(&path, text).unwrap();
        environment.config_files.push(path);
    }
    environment
}

const USERS: &str = "\
[defaults]
server = \"http://gpu-7:3000\"
cache_limit = \"50G\"
settle = 2

[server.\"gpu-7:80\"]
branch = \"other\"

[server.\"http://gpu-7:3000\"]
branch = \"dev\"
settle = 0.5

[repository.\"ox/cats\"]
settle = \"3s\"
read-only = true
umask = \"077\"
";

#[test]
fn a_repository_goes_before_its_server_that_before_the_defaults_and_the_user_before_the_machine() {
    let temp = tempfile::tempdir().unwrap();
    let machine = "[defaults]\ncache-limit = 1000\nspool-limit = \"7G\"\n[repository.\"ox/cats\"]\nsettle = 9\n";
    let mut environment = configured(temp.path(), &[USERS, machine]);
    let of = |repo: &str, environment: &Environment| MountSettings::new(input(repo, None), environment).unwrap();
    let cats = of("ox/cats", &environment);
    assert_eq!(cats.server.to_string(), "http://gpu-7:3000");
    assert_eq!((cats.branch.as_str(), cats.settle), ("dev", Duration::from_secs(3)));
    assert_eq!((cats.cache_limit_bytes, cats.spool_limit_bytes), (50 << 30, 7 << 30));
    assert!(cats.is_read_only() && cats.access.umask == 0o077);
    let dogs = of("ox/dogs", &environment);
    assert_eq!((dogs.branch.as_str(), dogs.settle, dogs.is_read_only()), ("dev", Duration::from_millis(500), false));
    let elsewhere = of("http://h/ox/dogs", &environment);
    assert_eq!((elsewhere.branch.as_str(), elsewhere.settle), ("main", Duration::from_secs(2)));
    // The environment goes before the files, the command before both.
    environment.settings.insert("settle", "4".into());
    environment.settings.insert("read-only", "false".into());
    let cats = of("ox/cats", &environment);
    assert_eq!((cats.settle, cats.is_read_only()), (Duration::from_secs(4), false));
    let told = MountInput { settle: Some("5".into()), read_only: Some(true), ..input("ox/cats", None) };
    let cats = MountSettings::new(told, &environment).unwrap();
    assert_eq!((cats.settle, cats.is_read_only()), (Duration::from_secs(5), true));
}

#[test]
fn what_a_configuration_file_cannot_mean_is_named_with_its_line() {
    let temp = tempfile::tempdir().unwrap();
    let cases = [
        ("[defaults]\n\ncache-limt = \"1G\"\n", 3, "there is no setting \"cache-limt\"; there are server, branch"),
        ("[defaults]\nsettle = \"soon\"\n", 2, "settle \"soon\" is not a time such as 0.5 or 2s"),
        ("[defaults]\nread-only = \"yes\"\n", 2, "read-only is to be true or false, without quotes"),
        ("[defaults]\numask = 22\n", 2, "umask is to be a string, in quotes"),
        ("[defaults]\nworkspace = \"w\"\n", 2, "workspace stands only in a repository's section"),
        ("[server.h]\nserver = \"i\"\n", 2, "server is nothing for a server"),
        ("[defaults]\nsettle = 1\nlog = \"warn\"\nsettle = 2\n", 4, "no TOML: "),
        ("[defaults]\ncache-limit = 1\ncache_limit = 2\n", 3, "cache-limit is said twice"),
        ("settle = 1\n", 1, "\"settle\" is in no section; put it under [defaults]"),
        ("# one\n[default]\n", 2, "there is no section [default]; there are [defaults], [server.\"URL\"]"),
        ("[repository]\nsettle = 1\n", 2, "[repository] has a section for each, such as [repository.\"ox/cats\"]"),
        ("[repository.cats]\n", 1, "REPO \"cats\" is not NAMESPACE/NAME"),
        ("[server.\"ftp://h\"]\n", 1, "server \"ftp://h\" is not a server such as"),
        ("[defaults]\nsettle = \"1\n", 2, "no TOML: "),
        ("[defaults]\nsettle = 0x10\n", 2, "settle is to be a number, or a string in quotes"),
        ("[defaults]\ntoken = \"sesame\"\n", 2, "a token does not stand here"),
        ("[server.h]\ntoken-file = \"sesame\"\n", 2, "is not a path that begins with / or ~/"),
        ("[defaults]\ntoken-file = \"/x\"\n", 2, "token-file stands only for one server"),
        ("[repository.\"ox/cats\"]\ntoken-file = \"/x\"\n", 2, "token-file stands only for one server"),
    ];
    for (text, line, said) in cases {
        let environment = configured(temp.path(), &[text]);
        let error = MountSettings::new(input("ox/cats", Some("h")), &environment).unwrap_err();
        let begin = format!("{}, line {line}: ", temp.path().join("0.toml").display());
        let shown = error.to_string();
        assert!(shown.starts_with(&begin) && shown.contains(said), "{text:?}: {shown}");
        assert!(!shown.contains("sesame") && !error.is_usage(), "{shown}");
    }
}

#[test]
fn a_value_of_the_environment_that_will_not_do_is_named_by_its_variable() {
    let mut environment = nowhere();
    environment.settings.insert("cache-limit", "lots".into());
    let error = MountSettings::new(input("ox/cats", Some("h")), &environment).unwrap_err();
    assert_eq!(error.to_string(), "OXENFS_CACHE_LIMIT \"lots\" is not a size such as 512MiB or 10G");
    // Nobody asks for it then.
    let told = MountInput { cache_limit: Some("1".into()), ..input("ox/cats", Some("h")) };
    MountSettings::new(told, &environment).unwrap();
}

#[test]
fn every_setting_of_a_file_is_one_of_the_command_and_its_default_will_do() {
    for key in &KEYS {
        if let Some(default) = key.default {
            (key.check)(key.name, default).unwrap();
        }
        let text = match key.name {
            "server" => "h",
            "token-file" | "state-dir" => "/x",
            "read-only" | "write-through" | "allow-other" | "noexec" => "true",
            "workspace" | "subdir" => "w",
            "metrics" => "127.0.0.1:9184",
            "ignore" => "*.tmp",
            _ => key.default.unwrap(),
        };
        let mut input = MountInput::default();
        assert!(!input.says(key), "{}", key.name);
        input.set(key, text).unwrap();
        assert!(input.says(key), "{}", key.name);
    }
}

#[test]
fn a_token_comes_from_the_file_that_goes_before_the_others_and_is_read_anew() {
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    for name in ["told", "variable", "configured"] {
        std::fs::write(at(name), format!(" {name}-token\n")).unwrap();
    }
    let server = ServerUrl::parse("--server", "hub.oxen.ai").unwrap();
    let mut environment = environment(temp.path());
    let token = |environment: &Environment, told: Option<&str>, configured: Option<&str>| {
        let source = CredentialSource::new(environment, &server, told.map(at), configured.map(at)).unwrap();
        source.try_read().unwrap().map(|token| token.expose().to_owned())
    };
    assert_eq!(token(&environment, None, None), None);
    assert_eq!(token(&environment, None, Some("configured")).as_deref(), Some("configured-token"));
    environment.api_key_file = Some(at("variable"));
    assert_eq!(token(&environment, None, Some("configured")).as_deref(), Some("variable-token"));
    environment.api_key = Some(Secret::new("key-token"));
    assert_eq!(token(&environment, None, Some("configured")).as_deref(), Some("key-token"));
    assert_eq!(token(&environment, Some("told"), Some("configured")).as_deref(), Some("told-token"));
    let source = CredentialSource::new(&environment, &server, Some(at("told")), None).unwrap();
    std::fs::write(at("told"), "renewed-token").unwrap();
    assert_eq!(source.read().unwrap().expose(), "renewed-token");
    for (content, problem) in [(Some(""), "is empty"), (None, "cannot be read: ")] {
        match content {
            Some(text) => std::fs::write(at("told"), text).unwrap(),
            None => std::fs::remove_file(at("told")).unwrap(),
        }
        assert!(source.read().is_none());
        let said = source.try_read().unwrap_err().to_string();
        assert!(said.contains("told was named for the token (--token-file), and ") && said.contains(problem), "{said}");
    }
}
