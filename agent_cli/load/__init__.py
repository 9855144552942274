"""`abide load`: a bounded load on agents, with the times of starting, replying, saving, closing and stopping."""
