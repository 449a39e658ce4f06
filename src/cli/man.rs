//! `oxenfs man`: manual pages, made from the same definitions as `--help`.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::args::{Cli, HelperArgs, ManArgs, UmountArgs};
use super::failure::{Doing, Failure, quoted};
use super::output::{data, verbatim};

/// `oxenfs man`.
pub fn man(args: ManArgs) -> Result<u8, Failure> {
    if let Some(dir) = &args.dir {
        let pages = pages();
        std::fs::create_dir_all(dir).map_err(Failure::new).doing(|| format!("cannot make {}", quoted(dir)))?;
        for (name, page) in &pages {
            let path = dir.join(name);
            write(&path, page).map_err(Failure::new).doing(|| format!("cannot write {}", quoted(&path)))?;
        }
        data(&pages.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("\n"))?;
        return Ok(0);
    }
    let wanted = match args.command.is_empty() {
        true => "oxenfs.1".to_owned(),
        false => format!("oxenfs-{}.1", args.command.join("-")),
    };
    match pages().into_iter().find(|(name, _)| *name == wanted) {
        Some((_, page)) => verbatim(String::from_utf8_lossy(&page).trim_end())?,
        None => {
            let what = format!("there is no command {:?}", args.command.join(" "));
            return Err(Failure::usage(what).hint("oxenfs --help lists the commands"));
        }
    }
    Ok(0)
}

fn write(path: &Path, page: &[u8]) -> std::io::Result<()> {
    File::create(path)?.write_all(page)
}

/// All pages, by the names of their files.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut pages = Vec::new();
    let mut command = Cli::command().disable_help_subcommand(true);
    // So that each page has the options that all commands have.
    command.build();
    add(&command, "oxenfs", &mut pages);
    for (helper, of) in [(HelperArgs::command(), "mount.fuse.oxenfs"), (UmountArgs::command(), "umount.fuse.oxenfs")] {
        let page = Man::new(helper.clone()).title(of.to_uppercase()).section("8").manual("System administration");
        pages.push((format!("{of}.8"), rendered(&page)));
    }
    pages
}

fn add(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) {
    let named: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let page = Man::new(command.clone().name(named)).title(name.to_uppercase()).manual("oxenfs");
    pages.push((format!("{name}.1"), rendered(&page)));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        add(below, &format!("{name}-{}", below.get_name()), pages);
    }
}

fn rendered(page: &Man) -> Vec<u8> {
    let mut text = Vec::new();
    // Writing into memory does not fail.
    let _ = page.render(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let pages = pages();
        let has = |wanted: &str| pages.iter().any(|(name, page)| name == wanted && page.len() > 200);
        for name in
            ["oxenfs.1", "oxenfs-mount.1", "oxenfs-repo-create.1", "oxenfs-config-show.1", "umount.fuse.oxenfs.8"]
        {
            assert!(has(name), "{name}: {:?}", pages.iter().map(|(name, _)| name).collect::<Vec<_>>());
        }
        let commands = Cli::command().get_subcommands().filter(|command| !command.is_hide_set()).count();
        assert!(pages.len() > commands, "{}", pages.len());
    }
}
