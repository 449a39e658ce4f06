//! What is owed to the server, and in which order it is sent. Names neither files nor a runtime.
//!
//! | module | owns |
//! |---|---|
//! | [`index`] | per path: base, staged, wanted, and the step that brings one to the other |
//! | [`queue`] | which paths are due, when, and who waits for them |

pub mod index;
pub mod queue;
