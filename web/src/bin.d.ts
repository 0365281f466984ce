/** Binary files that the build puts into the program. */
declare module "*.bin" {
  const bytes: Uint8Array;
  export default bytes;
}
