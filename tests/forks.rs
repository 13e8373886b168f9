//! Forks of Redis as sources, played by a stand-in (`support::fork`): none of them can be had here.
