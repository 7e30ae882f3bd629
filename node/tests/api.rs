//! The API as clients see it, over the double of a node (`examples/served`), and the command line as its client. No
//! KVM, no guest: commands run here, under the real agent.

#[cfg(test)]
#[path = "api/cases.rs"]
mod cases;
#[cfg(test)]
#[path = "api/command_line.rs"]
mod command_line;
#[cfg(test)]
#[path = "api/creates.rs"]
mod creates;
#[cfg(test)]
#[path = "api/daemon.rs"]
mod daemon;
#[cfg(test)]
#[path = "api/documents.rs"]
mod documents;
#[cfg(test)]
#[path = "api/fixture.rs"]
mod fixture;
#[cfg(test)]
#[path = "api/schema.rs"]
mod schema;
#[cfg(test)]
#[path = "api/streams.rs"]
mod streams;
