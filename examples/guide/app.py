import logging

from flask import Flask, jsonify

app = Flask(__name__)
logging.basicConfig(level=logging.INFO)


@app.route("/")
def hello():
    app.logger.info("Received request")
    return jsonify(message="Hello from Lambda MicroVM!")


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=8080)
