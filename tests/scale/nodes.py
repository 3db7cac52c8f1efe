"""The nodes of a cluster of Ray, all in this machine, in a process of their own: Ray forks, which JAX warns of.

It prints the address, and then does what it is told line by line: `add CPUS`, `kill NUMBER`; each answered by a line.
"""

import sys

SMALL = dict(object_store_memory=80 << 20, include_dashboard=False)


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **SMALL))
    nodes = []
    print(cluster.address, flush=True)
    for line in sys.stdin:
        verb, value = line.split()
        if verb == "add":
            nodes.append(cluster.add_node(num_cpus=int(value), **SMALL))
            print(len(nodes) - 1, flush=True)
        else:
            cluster.remove_node(nodes[int(value)], allow_graceful=False)
            print(value, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
