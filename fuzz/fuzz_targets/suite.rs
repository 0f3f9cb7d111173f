//! The model of the test suite, and the store beside it.
#![allow(dead_code, reason = "each target uses its own part")]

#[path = "../../tests/support/bytes.rs"]
pub mod bytes;
#[path = "../../tests/support/calls.rs"]
pub mod calls;
#[path = "../../tests/support/model.rs"]
pub mod model;
#[path = "../../tests/support/task.rs"]
pub mod task;
#[path = "../../tests/support/world.rs"]
pub mod world;
