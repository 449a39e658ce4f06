//! What is owed to the server, and how it gets there. Knows the filesystem as a [`Source`] alone.
//!
//! | module | owns |
//! |---|---|
//! | [`index`] | per path: base, staged, wanted, and the step that brings one to the other |
//! | [`queue`] | which paths are due, when, and who waits for them |
//! | [`item`](Capture) | a path and what it is to hold, and what keeps those bytes as they are |
//! | [`source`](Source) | what the engine asks of the filesystem, and tells it |
//! | [`engine`](Engine) | hash, ask, send, confirm |
//! | `lanes` | which way content travels |
//! | `delays`, `pace`, [`meter`](Meter) | pauses between attempts; how fast it goes; what a status shows of it |
//!
//! `index`, `queue`, `lanes`, `delays` and `pace` name neither files nor a runtime.

mod delays;
mod engine;
pub mod index;
mod item;
mod lanes;
mod meter;
mod pace;
pub mod queue;
mod source;

pub use delays::Delays;
pub use engine::Engine;
pub(crate) use item::Keeper;
pub use item::{Capture, Held, Want};
pub use meter::Meter;
pub use source::{Asked, Back, Depends, Failed, Source, SourceError};
