//! One suite for every Oxen server: the embedded one in each dialect, and the real `oxen-server`.
//!
//! A behaviour is an async function over [`Target`](server::Target), written once; [`contract!`] makes one test of it
//! for each server it holds for:
//!
//! - `embedded_documented`, `embedded_0_50`, `embedded_0_58`, `embedded_0_65`: in process, nothing to install;
//! - `real`: the binary that `scripts/oxen-server path` prints, started once per test process. These are `#[ignore]`d
//!   for whoever has not built it: `cargo test --test contract -- --ignored real`, or `scripts/test`.
//! - `older`: the last release that stages by hash through JSON, 0.53.4, for running by hand:
//!   `OXEN_SERVER_VERSION=0.53.4 scripts/oxen-server install && cargo test --test contract -- --ignored older`.
//!
//! To add one: write the function in `protocol.rs` (raw HTTP) or in a file of its own, and name it in that file's
//! `contract!` under the servers it holds for.

/// Makes a test of each behaviour for each server of its group.
///
/// Groups, all optional, in this order: `everywhere`; `released` (all but the documented dialect); `by_batch` (the two
/// dialects that stage many files by hash in one request: documented and 0.50; older too); `newer` (0.58, 0.65, real);
/// `subdirectories` (multipart names keep
/// them: 0.58, 0.65, real, older); `current` (0.65, real); `only_documented`; `only_0_50`; `only_0_58`; `only_embedded_0_65`
/// (what needs faults or a restart).
macro_rules! contract {
    (
        $(everywhere: [$($everywhere:ident),* $(,)?];)?
        $(released: [$($released:ident),* $(,)?];)?
        $(by_batch: [$($by_batch:ident),* $(,)?];)?
        $(newer: [$($newer:ident),* $(,)?];)?
        $(subdirectories: [$($subdirectories:ident),* $(,)?];)?
        $(current: [$($current:ident),* $(,)?];)?
        $(only_documented: [$($only_documented:ident),* $(,)?];)?
        $(only_0_50: [$($only_0_50:ident),* $(,)?];)?
        $(only_0_58: [$($only_0_58:ident),* $(,)?];)?
        $(only_embedded_0_65: [$($only_embedded_0_65:ident),* $(,)?];)?
    ) => {
        mod embedded_documented {
            contract!(@embedded Documented: $($($everywhere)*)? $($($by_batch)*)? $($($only_documented)*)?);
        }
        mod embedded_0_50 {
            contract!(@embedded V0_50: $($($everywhere)*)? $($($released)*)? $($($by_batch)*)? $($($only_0_50)*)?);
        }
        mod embedded_0_58 {
            contract!(@embedded V0_58:
                $($($everywhere)*)? $($($released)*)? $($($newer)*)? $($($subdirectories)*)? $($($only_0_58)*)?);
        }
        mod embedded_0_65 {
            contract!(@embedded V0_65:
                $($($everywhere)*)? $($($released)*)? $($($newer)*)? $($($subdirectories)*)? $($($current)*)?
                $($($only_embedded_0_65)*)?);
        }
        mod real {
            contract!(@real real:
                $($($everywhere)*)? $($($released)*)? $($($newer)*)? $($($subdirectories)*)? $($($current)*)?);
        }
        mod older {
            contract!(@real older: $($($everywhere)*)? $($($released)*)? $($($by_batch)*)? $($($subdirectories)*)?);
        }
    };
    (@embedded $dialect:ident: $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let target = crate::server::Target::embedded(oxenfs::dev_server::Dialect::$dialect).await;
                super::$name(&target).await;
            }
        )*
    };
    (@real $server:ident: $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs the real oxen-server: scripts/test runs these"]
            async fn $name() {
                let target = crate::server::Target::$server().await;
                super::$name(&target).await;
            }
        )*
    };
}

mod client;
mod protocol;
mod server;
