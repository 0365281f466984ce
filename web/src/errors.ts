/** The one error class of the library, with the codes of the specification's reject table. */

/** Codes of the reject table; `usage` is for a wrong call and `source` for bytes that could not be fetched. */
export type ErrorCode =
  | "magic"
  | "version"
  | "feature"
  | "truncated"
  | "trailing"
  | "limit"
  | "header-checksum"
  | "zstd"
  | "header"
  | "generator"
  | "basis"
  | "section-checksum"
  | "codec"
  | "symbols"
  | "units"
  | "bound"
  | "scale"
  | "content-checksum"
  | "factors-checksum"
  | "reference"
  | "usage"
  | "source";

/** A file was refused. `code` is stable; the message says where, what was expected and what was found. */
export class NolaError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string) {
    super(message);
    this.name = "NolaError";
    this.code = code;
  }
}

/** Throws a `NolaError`. It returns nothing, so that it can stand where a value is expected. */
export function refuse(code: ErrorCode, message: string): never {
  throw new NolaError(code, message);
}
