//! `oxenfs config show`: what holds, and where it is from; mistakes in files with their place.

use serde_json::Value;

use crate::{User, said, text};

impl User {
    /// The user's configuration file.
    fn configure(&self, content: &str) -> String {
        let dir = self.dir(".config/oxenfs");
        std::fs::write(dir.join("config.toml"), content).unwrap();
        // As the command names it, which follows no link.
        self.home.path().join(".config/oxenfs/config.toml").to_str().unwrap().to_owned()
    }
}

/// The value and the origin of one setting.
fn shown(out: &str, key: &str) -> (String, String) {
    let line = out.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap_or_else(|| panic!("{out}"));
    let mut words = line[key.len()..].split_whitespace();
    let value = words.next().unwrap().to_owned();
    (value, words.collect::<Vec<_>>().join(" "))
}

#[test]
fn each_setting_is_shown_with_where_it_is_from() {
    let user = User::new();
    let file = user.configure(
        "[defaults]\nserver = \"gpu-7.lab:3000\"\ncache-limit = \"50G\"\n\n[repository.\"ox/cats\"]\nbranch = \"dev\"\n",
    );
    let mut command = user.command(["config", "show", "ox/cats"]);
    let seen = said(command.env("OXENFS_SETTLE", "2s").env("OXEN_API_KEY", "sesame-0123456789"));
    assert_eq!((seen.exit, seen.err.as_str()), (0, ""), "{seen:?}");
    let of = |key: &str| shown(&seen.out, key);
    let two = |value: &str, from: &str| (value.to_owned(), from.to_owned());
    assert_eq!(of("server"), two("https://gpu-7.lab:3000", &format!("{file}:2 [defaults]")));
    assert_eq!(of("cache-limit"), two("50G", &format!("{file}:3 [defaults]")));
    assert_eq!(of("branch"), two("dev", &format!("{file}:6 [repository.\"ox/cats\"]")));
    assert_eq!(of("settle"), two("2s", "environment: OXENFS_SETTLE"));
    assert_eq!(of("drain-timeout"), two("20s", "built in"));
    assert_eq!(of("token-file"), two("(the", "token itself) environment: OXEN_API_KEY"));
    assert!(!seen.out.contains("sesame"), "{}", seen.out);
    // Of another repository, and as JSON.
    let seen = user.run(["config", "show", "http://127.0.0.1:3000/ox/dogs", "--json"]);
    let json: Value = serde_json::from_str(&seen.out).unwrap();
    assert_eq!(json["files"][0], Value::String(file.clone()));
    let settings = json["settings"].as_array().unwrap();
    let of = |key: &str| settings.iter().find(|setting| setting["key"] == key).unwrap();
    assert_eq!((&of("branch")["value"], &of("branch")["from"]["place"]), (&"main".into(), &"built-in".into()));
    assert_eq!(of("cache-limit")["from"]["line"], 3);
    assert_eq!(of("server")["from"]["place"], "command-line");
}

#[test]
fn without_a_file_what_is_built_in_is_shown_and_where_a_file_may_be() {
    let user = User::new();
    let seen = said(user.command(["config", "show"]).env("OXENFS_CONFIG", user.path("none.toml")));
    assert_eq!(seen.exit, 0, "{seen:?}");
    assert_eq!(shown(&seen.out, "server").0, "-");
    let note = format!("no configuration file is there; one may be at {}\n", text(&user.path("none.toml")));
    assert_eq!(seen.err, note);
}

#[test]
fn a_mistake_in_a_file_is_told_with_its_line_by_every_command_that_goes_by_it() {
    let user = User::new();
    let file = user.configure("[defaults]\nserver = \"h\"\nspool-limit = \"lots\"\n");
    let dir = user.dir("mnt");
    let problem = format!("{file}, line 3: spool-limit \"lots\" is not a size such as 512MiB or 10G\n");
    let hint = "hint: correct that line; oxenfs config show tells what each setting is then\n";
    for (arguments, what) in [
        (vec!["config", "show"], "cannot show the settings"),
        (vec!["mount", "ox/cats", text(&dir)], "cannot mount ox/cats"),
        (vec!["branches", "ox/cats"], "cannot list the branches of ox/cats"),
        (vec!["log", "ox/cats"], "cannot show the history of ox/cats"),
    ] {
        let seen = user.run(&arguments);
        assert_eq!((seen.exit, seen.out.as_str()), (1, ""), "{arguments:?}");
        assert_eq!(seen.err, format!("error: {what}: {problem}{hint}"));
    }
    // What is mounted is looked after all the same.
    assert_eq!(user.run(["status"]).exit, 0);
}

#[test]
fn a_token_file_that_has_no_token_is_told_before_anything_is_mounted() {
    let user = User::new();
    let (dir, token) = (user.dir("mnt"), user.path("token"));
    std::fs::write(&token, "\n").unwrap();
    let arguments = ["mount", "ox/cats", text(&dir), "--server", "http://127.0.0.1:1", "--token-file", text(&token)];
    let seen = user.run(arguments);
    let place = text(&token);
    let expected = format!(
        "error: cannot mount ox/cats: {place} was named for the token (--token-file), and is empty\n\
         hint: write the token into it and nothing else: install -m 600 /dev/stdin {place}\n"
    );
    assert_eq!((seen.exit, seen.err), (1, expected));
}
