/** What `ip -j` prints. */

/** All that must not be in JSON. Between its values these are white space. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what it is about.
const control = /[\u0000-\u001f]/g;

/**
 * The objects of a list that `ip -j` printed; of an empty output, none. `ip` does not escape all control characters, which names
 * and aliases of links may hold.
 */
export function parseObjects<T>(output: string): T[] {
  return output.trim() === "" ? [] : (JSON.parse(output.replace(control, " ")) as T[]);
}
