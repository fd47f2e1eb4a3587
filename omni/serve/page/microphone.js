// The visitor's microphone as 20 ms frames of int16 at 16 kHz, while it is open.
//
//   const microphone = await Microphone.open(context, ({ pcm, level }) => …);   // raises MicrophoneRefused
//   microphone.close();                                                          // the browser's recording sign goes out

const WISHES = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const WHAT_TO_DO = {
  NotAllowedError:
    "The microphone is blocked for this page. Click the icon left of the address, allow the microphone, and press the button again.",
  NotFoundError: "No microphone was found. Connect one and press the button again.",
  NotReadableError: "Another program holds the microphone. Close it there and press the button again.",
};

export class MicrophoneRefused extends Error {}

export class Microphone {
  static async open(context, onframe) {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: WISHES });
    } catch (error) {
      throw new MicrophoneRefused(WHAT_TO_DO[error.name] || `The microphone does not open: ${error.message}`);
    }
    try {
      await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
      return new Microphone(context, stream, onframe);
    } catch (error) {
      stop(stream);
      throw error;
    }
  }

  constructor(context, stream, onframe) {
    this.stream = stream;
    this.source = context.createMediaStreamSource(stream);
    this.node = new AudioWorkletNode(context, "omni-capture");
    this.node.port.onmessage = ({ data }) => onframe(data);
    // Its output is silence; some browsers run a node only if it leads somewhere.
    this.source.connect(this.node).connect(context.destination);
  }

  // Called when the device itself goes away: unplugged, or forbidden while in use.
  set onlost(callback) {
    for (const track of this.stream.getTracks()) track.onended = callback;
  }

  close() {
    this.onlost = null;
    stop(this.stream);
    this.source.disconnect();
    this.node.disconnect();
    this.node.port.onmessage = null;
    this.node.port.postMessage("end");
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
