//! The program as its callers see it: exit codes, events, sockets, ends, templates. Guests are a few
//! instructions on a real /dev/kvm; where there is none, those tests say so and do nothing.

#[cfg(test)]
mod ends;
#[cfg(test)]
mod guest;
#[cfg(test)]
#[path = "../zygote/node.rs"]
mod node;
#[cfg(test)]
mod templates;
#[cfg(test)]
mod zygotes;
