import { describe, expect, test } from "bun:test";
import recorded from "../recorded/nfnetlink.txt";
import { FirewallWatch } from "./firewallwatch.ts";
import type { NftChain } from "./nfnetlink.ts";

/** One datagram of a foreign change of ours. */
const change = Buffer.from(
  (/^an element comes: (\S+)/m.exec(recorded) as RegExpExecArray)[1] as string,
  "base64",
);
const port = change.readUInt32LE(12);

/** A socket and a clock to be told what is to come; `at` gives how often the watch has told by then. */
function start({ socket = true, chains = [] as NftChain[] } = {}) {
  const state = {
    now: 0,
    told: 0,
    socket,
    chains,
    lists: 0,
    listTakes: 0,
    datagrams: [] as Buffer[],
    whole: true,
  };
  const list = async () => {
    state.lists += 1;
    state.now += state.listTakes;
    return state.chains;
  };
  const watch = new FirewallWatch(list, () => state.now);
  const drain = (take: (datagram: Buffer) => void) => {
    for (const datagram of state.datagrams.splice(0)) take(datagram);
    const { whole } = state;
    state.whole = true;
    return whole;
  };
  watch.follow(
    () => (state.socket ? { drain } : undefined),
    () => {
      state.told += 1;
    },
  );
  const at = async (now: number, before: Partial<typeof state> = {}) => {
    Object.assign(state, before, { now });
    await watch.look();
    return state.told;
  };
  return { state, watch, at };
}

describe("by a socket", () => {
  test("a change is told at once, those within a second after it as one", async () => {
    const { at } = start();
    expect(await at(0)).toBe(1);
    expect(await at(5_000)).toBe(1);
    expect(await at(5_200, { datagrams: [change] })).toBe(2);
    expect(await at(5_400, { datagrams: [change, change] })).toBe(2);
    expect(await at(5_600, { datagrams: [change] })).toBe(2);
    expect(await at(6_200)).toBe(3);
    expect(await at(9_000)).toBe(3);
  });

  test("what was lost is told at once, and while it goes on every 5 s", async () => {
    const { at } = start();
    await at(0);
    expect(await at(6_000, { whole: false })).toBe(2);
    expect(await at(10_000, { whole: false })).toBe(2);
    expect(await at(11_000)).toBe(3);
    expect(await at(20_000)).toBe(3);
    // A change beside it does not wait.
    expect(await at(21_000, { whole: false })).toBe(4);
    expect(await at(22_000, { whole: false, datagrams: [change] })).toBe(5);
  });

  test("own programs' changes are not told, others' meanwhile are", async () => {
    const { at, state, watch } = start();
    await at(0);
    const write = (pids: number[]) =>
      watch.excluding(async () => {
        state.datagrams = [change];
        await watch.look();
        return pids;
      });
    await write([port]);
    expect(await at(5_000)).toBe(1);
    await write([port + 1]);
    expect(state.told).toBe(2);
  });

  test("one that is there later is told of when it is: what was before is not known", async () => {
    const { at } = start({ socket: false });
    await at(0);
    expect(await at(10_000)).toBe(1);
    expect(await at(11_000, { socket: true })).toBe(2);
    expect(await at(20_000)).toBe(2);
  });
});

describe("without a socket", () => {
  const chain: NftChain = {
    family: "ip",
    table: "filter",
    name: "FORWARD",
    hook: "forward",
    policy: "accept",
  };

  test("chains are listed every 5 s, and what differs is told", async () => {
    const { at, state } = start({ socket: false, chains: [chain] });
    expect(await at(0)).toBe(1);
    expect(await at(4_800, { chains: [{ ...chain, policy: "drop" }] })).toBe(1);
    expect(await at(5_000)).toBe(2);
    expect(await at(10_000)).toBe(2);
    expect(await at(15_000, { chains: [] })).toBe(3);
    expect(state.lists).toBe(4);
  });

  test("long lists are asked for so seldom that they take a hundredth of the time", async () => {
    const { at, state } = start({ socket: false });
    await at(0, { listTakes: 300 });
    await at(30_000);
    expect(state.lists).toBe(1);
    await at(30_400);
    expect(state.lists).toBe(2);
  });

  test("a list that fails is asked for again", async () => {
    const { at, state } = start({ socket: false, chains: [chain] });
    await at(0);
    const broken = {
      get chains(): NftChain[] {
        throw new Error("nft: exit code 1");
      },
    };
    Object.defineProperty(state, "chains", {
      ...Object.getOwnPropertyDescriptor(broken, "chains"),
      configurable: true,
    });
    expect(await at(5_000)).toBe(1);
    Object.defineProperty(state, "chains", { value: [], writable: true, configurable: true });
    expect(await at(10_000)).toBe(2);
  });
});
