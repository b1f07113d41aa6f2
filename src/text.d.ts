/** Files that are imported as text and become part of the executable. */
declare module "*.service" {
  const text: string;
  export default text;
}
