/** What programs use of the JavaScript client. */

export { DeliveryClient } from "./client/client.js";
export { Incoming } from "./client/download.js";
export { LargeMessages } from "./client/large_messages.js";
export { Upload } from "./client/upload.js";
export {
  ConnectionStopped,
  DeliveryError,
  IntegrityError,
  ProtocolViolation,
  Refused,
  TransferAborted,
  Unavailable,
  UsageError,
} from "./errors.js";
