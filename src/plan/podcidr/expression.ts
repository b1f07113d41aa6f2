/** The CEL expression that derives a node's pod CIDRs from the prefixes on its interfaces and from its metadata. */
import type { Environment } from "@marcbachmann/cel-js";
import { Cidr, NodeValue, newEnvironment } from "./library.ts";

export interface ExpressionInput {
  /** By interface, its prefixes as address/length; host bits are kept. */
  interfaces: Record<string, string[]>;
  node: { name: string; labels: Record<string, string>; annotations: Record<string, string> };
}

export interface Expression {
  readonly source: string;
  /** The pod CIDRs, masked and canonical, each once, in the expression's order. Throws an Error that says what failed. */
  evaluate(input: ExpressionInput): string[];
}

/** Steps that an evaluation may take. They last about 0.05 s: no expression keeps the agent busy for long. */
const maxSteps = 1_000_000;

/** Parses and type-checks an expression. Throws an Error that says what is wrong, where, and what would be right. */
export function compileExpression(source: string): Expression {
  const environment = newEnvironment();
  const explained = (error: unknown) => `${position(error, source)}${explain(error, source, environment)}`;
  let program: ReturnType<Environment["parse"]>;
  let meter: Meter;
  try {
    program = environment.parse(source);
    const { error, type = "" } = program.check();
    if (error) throw error;
    if (!/^(cidr|dyn\b.*|list(<(cidr|dyn\b.*|T)>)?)$/.test(type)) {
      const hint = /^(list<)?string/.test(type) ? "; cidr(…) makes one of a string" : "";
      throw new Error(`the expression gives ${celType(type)}, but must give a cidr or a list(cidr)${hint}`);
    }
    meter = prepare(program.ast as unknown as SyntaxNode);
  } catch (error) {
    throw new Error(explained(error), { cause: error });
  }

  return {
    source,
    evaluate({ interfaces, node }) {
      try {
        const cidrs = Object.entries(interfaces)
          .map(([name, prefixes]) => [name, prefixes.map((prefix) => new Cidr(prefix))] as const)
          .sort(([a], [b]) => (a < b ? -1 : 1));
        meter.steps = 0;
        const result: unknown = program({
          interfaces: new Map(cidrs),
          node: new NodeValue(node.name, node.labels, node.annotations),
        });
        // `exists` and `||` go on after an error, this one too.
        if (meter.steps > maxSteps) throw tooManySteps();
        return [...new Set(toCidrs(result).map((cidr) => cidr.masked))];
      } catch (error) {
        throw new Error(`${explained(error)}; the interfaces were ${describe(interfaces)}`, { cause: error });
      }
    },
  };
}

function toCidrs(result: unknown): Cidr[] {
  if (result instanceof Cidr) return [result];
  const wrong = Array.isArray(result) ? result.find((element) => !(element instanceof Cidr)) : result;
  if (wrong === undefined && Array.isArray(result)) return result;
  const shown =
    typeof wrong === "object" ? "something else" : typeof wrong === "string" ? JSON.stringify(wrong) : wrong;
  const where = wrong === result ? "" : " in its list";
  throw new Error(`the expression gave ${shown}${where}, but must give a cidr or a list(cidr)`);
}

function describe(interfaces: Record<string, string[]>): string {
  const text = Object.entries(interfaces)
    .map(([name, prefixes]) => `${name} (${prefixes.join(", ") || "without prefix"})`)
    .join(", ");
  return text === "" ? "none" : short(text, 500);
}

/** The part of the library's syntax tree that its types leave out. */
interface SyntaxNode {
  readonly op: string;
  readonly args: unknown;
  readonly start: number;
  readonly end: number;
  readonly checkedType?: { kind: string; name: string; keyType?: { kind: string; name: string } };
  readonly meta: { alternate?: SyntaxNode; macro?: object; evaluate: Evaluate };
  setMeta(key: "evaluate", value: Evaluate): void;
}
type Evaluate = (evaluator: unknown, node: SyntaxNode, context: unknown) => unknown;
interface Meter {
  steps: number;
}

/**
 * Adds what the library lacks to a checked tree. A limit on the work: CEL has no loops, but nested comprehensions
 * and doubled lists can run for ever. Map keys of the right type. And `int("")` is an error, as in every other CEL,
 * not 0: an empty label must not give a node the CIDR of another.
 */
function prepare(root: SyntaxNode): Meter {
  const meter = { steps: 0 };
  const numerals = new Set<unknown>();
  for (const node of nodes(root)) {
    if (node.op === "[]") checkKey(node);
    const [name, operands] = node.op === "call" ? (node.args as [string, SyntaxNode[]]) : ["", []];
    if (name === "int" || name === "uint") numerals.add(operands[0]);
  }
  for (const node of nodes(root)) {
    const evaluate = node.meta.evaluate;
    // These hand on a list that is still growing: its elements have been counted.
    const counted = !node.op.startsWith("accu") && node.op !== "?:";
    node.setMeta("evaluate", (evaluator, self, context) => {
      if (++meter.steps > maxSteps) throw tooManySteps();
      const value = evaluate(evaluator, self, context);
      if (counted && Array.isArray(value)) meter.steps += value.length;
      else if (counted && typeof value === "string") meter.steps += value.length >> 6;
      if (typeof value === "string" && numerals.has(node) && !/^[+-]?\d+$/.test(value))
        throw fault(`${JSON.stringify(value)} is not a whole number`, node);
      return value;
    });
  }
  return meter;
}

function tooManySteps(): Error {
  return new Error(`the expression takes more than ${maxSteps} steps`);
}

function checkKey(node: SyntaxNode): void {
  const [map, key] = node.args as [SyntaxNode, SyntaxNode];
  const [wanted, given] = [map.checkedType?.keyType, key.checkedType];
  if (map.checkedType?.kind !== "map" || !wanted || !given) return;
  if (
    wanted.name === given.name ||
    [wanted.kind, given.kind].some((kind) => kind === "dyn" || kind === "param")
  )
    return;
  throw fault(`the key must be of type ${celType(wanted.name)}, not ${celType(given.name)}`, key);
}

/** An error with the place in the source, in the library's form. */
function fault(message: string, { start, end }: SyntaxNode): Error {
  return Object.assign(new Error(message), { range: { start, end } });
}

/** The nodes of a tree that are evaluated: macros as expanded. */
function* nodes(part: unknown, seen = new Set<unknown>()): Generator<SyntaxNode> {
  if (typeof part !== "object" || part === null || seen.has(part)) return;
  seen.add(part);
  if ("setMeta" in part) {
    const node = part as SyntaxNode;
    const expanded = node.meta.alternate ?? node.meta.macro;
    if (!expanded) yield node;
    yield* nodes(expanded ?? node.args, seen);
  } else if (Array.isArray(part) || Object.getPrototypeOf(part) === Object.prototype) {
    for (const value of Object.values(part)) yield* nodes(value, seen);
  }
}

/** What the library tells about an error, beside the message. */
interface LibraryError {
  code?: string;
  /** The message without the excerpt of the source. */
  summary?: string;
  range?: { start: number; end: number };
  node?: { op?: string; args?: unknown };
}

/** An error in the user's terms, with what would be right. */
function explain(error: unknown, source: string, environment: Environment): string {
  const { code, summary = (error as Error).message, node } = error as LibraryError;
  const key = /^No such key: (.*)$/s.exec(summary)?.[1];
  const [of] = Array.isArray(node?.args) ? (node.args as SyntaxNode[]) : [];
  const container = of?.start === undefined ? "the map" : short(source.slice(of.start, of.end), 60);
  switch (code) {
    case "unknown_variable":
      return `unknown variable ${summary.split(": ")[1]}; the variables are interfaces and node`;
    case "no_matching_overload":
      return noFunction(summary, environment);
    case "no_such_key":
      if (of?.checkedType?.name === "node") return `node has no ${key}; it has name, labels and annotations`;
      if (of?.checkedType?.kind === "message")
        return `type ${of.checkedType.name} has no field ${key}; functions are called as ${key}()`;
      return `${container} has no key ${JSON.stringify(key)}`;
    case "index_out_of_bounds": {
      const index = /index (-?\d+)/.exec(summary)?.[1];
      const size = /size (\d+)/.exec(summary)?.[1] ?? "0";
      if (index?.startsWith("-")) return `the index ${index} is negative`;
      return `${container} ${size === "0" ? "is empty" : `has ${size} elements`}, so it has no [${index}]`;
    }
    case "expected_token":
    case "unexpected_token":
      return `syntax error: ${summary.replace(/[A-Z]{2,}/g, (token) => tokens[token] ?? token.toLowerCase())}`;
    default:
      return celType(summary);
  }
}

const tokens: Record<string, string> = {
  EOF: "the end of the expression",
  LPAREN: "'('",
  RPAREN: "')'",
  LBRACKET: "'['",
  RBRACKET: "']'",
  LBRACE: "'{'",
  RBRACE: "'}'",
  DOT: "'.'",
  COMMA: "','",
  COLON: "':'",
  QUESTION: "'?'",
  MULTIPLY: "'*'",
  DIVIDE: "'/'",
  MODULO: "'%'",
  PLUS: "'+'",
};

function noFunction(summary: string, environment: Environment): string {
  const [, call = "", receiver, name] = /'((?:(.+?)\.)?(\w+)\(.*\))'/s.exec(summary) ?? [];
  const all = environment
    .getDefinitions()
    .functions.filter((known) => !known.signature.includes("ipNamespace"));
  const sameName = all.filter((known) => known.name === name && !known.receiverType === !receiver);
  if (sameName.length > 0)
    return celType(`${call} does not fit; there is ${sameName.map((known) => known.signature).join(", ")}`);
  const type = /^(list|map)\b/.exec(receiver ?? "")?.[1] ?? receiver;
  const others = all.filter((known) => known.receiverType?.replace(/<.*/, "") === type);
  const names = [...new Set(others.map((known) => known.name))].sort().join(", ");
  if (receiver === "ipNamespace") return `there is no function ip.${name}, only ip.isCanonical`;
  if (receiver) return celType(`type ${receiver} has no function ${name}${names && `; it has ${names}`}`);
  return `there is no function ${name}; beside CEL's own there are cidr, ip, ip.isCanonical, isCIDR and isIP`;
}

/** `list<cidr>` of the library's messages as CEL writes it, `list(cidr)`. */
function celType(text: string): string {
  const next = text.replace(/\b(list|map|dyn|optional)<([^<>]*)>/g, "$1($2)");
  return next === text ? text : celType(next);
}

function position(error: unknown, source: string): string {
  const { range } = error as LibraryError;
  if (!range) return "";
  const lines = source.slice(0, range.start).split("\n");
  const excerpt = short(source.slice(range.start, range.end), 60);
  return `line ${lines.length}, column ${lines.at(-1)!.length + 1}${excerpt && ` (${excerpt})`}: `;
}

function short(text: string, length: number): string {
  const line = text.replace(/\s+/g, " ");
  return line.length <= length ? line : `${line.slice(0, length - 1)}…`;
}
