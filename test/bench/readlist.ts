/** Reads the metadata of the Nodes of KUBECONFIG's API server, keeps none of it, and prints the milliseconds. */
import { ApiClient } from "../../src/cluster/client.ts";
import { readList } from "../../src/cluster/list.ts";

const client = new ApiClient(process.env.KUBECONFIG);
const from = performance.now();
let nodes = 0;
await readList(
  client,
  { path: "/api/v1/nodes", accept: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1" },
  new URLSearchParams({ resourceVersion: "0" }),
  () => {
    nodes += 1;
  },
);
console.log(JSON.stringify({ took: performance.now() - from, nodes }));
process.exit(0);
